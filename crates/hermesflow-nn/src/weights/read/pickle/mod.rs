//! `*.bin` files as `torch.save` writes a state dict: a zip of a pickle and raw values. The pickle is parsed, never executed.
//!
//! Objects are kept in one list and refer to each other by number. So none is copied, nothing here is recursive, and memory grows
//! with the file alone, however often a pickle repeats or nests its objects. Values that do not lie within the file are refused
//! before any memory is reserved for them.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;

use candle_core::DType;
use zip::{CompressionMethod, ZipArchive};

use super::held::Held;

/// Most bytes of a pickle: the names and shapes of a state dict need less.
const LONGEST: usize = 32 << 20;
/// Most dimensions of a tensor.
const RANK: usize = 8;

/// The tensors of a state dict.
///
/// # Errors
/// Says what the file is instead, or which tensor does not lie within it.
pub(super) fn tensors(bytes: &[u8]) -> Result<Vec<Held>, String> {
    let files = stored_files(bytes)?;
    let named = |name: &&String| name.as_str() == "data.pkl" || name.ends_with("/data.pkl");
    let name = files.keys().filter(named).min().ok_or("a zip without data.pkl: not what torch.save writes")?;
    let folder = name.trim_end_matches("data.pkl");
    let order = files.get(&format!("{folder}byteorder")).map_or(&b""[..], |part| &bytes[part.clone()]);
    if order.starts_with(b"big") {
        return Err("its values are big-endian, which is not read; save it again on another computer".into());
    }
    let pickle = &bytes[files[name].clone()];
    if pickle.len() > LONGEST {
        return Err(format!("a pickle of {} MB, larger than any state dict's", pickle.len() >> 20));
    }
    let objects = Objects::read(pickle)?;
    let Object::Dict(items) = objects.get(objects.result) else { return Err("not a state dict".into()) };
    let mut tensors = HashMap::new(); // of equal names the last one counts, as in Python
    for &(name, value) in items {
        let (Object::Text(name), Some(arguments)) = (objects.get(name), objects.tensor(value)) else { continue };
        let held = objects.held(name, arguments, |key| files.get(&format!("{folder}data/{key}")).cloned());
        if let Some(held) = held.map_err(|message| format!("{name}: {message}"))? {
            tensors.insert(*name, held);
        }
    }
    Ok(tensors.into_values().collect())
}

/// The byte ranges of the uncompressed files of a zip, by name; PyTorch compresses none.
fn stored_files(bytes: &[u8]) -> Result<HashMap<String, Range<usize>>, String> {
    let said = |error: zip::result::ZipError| error.to_string();
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(said)?;
    let mut files = HashMap::new();
    for number in 0..archive.len() {
        let file = archive.by_index_raw(number).map_err(said)?;
        let (entry, start) = (file.entry(), file.data_start());
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            continue;
        }
        let name = entry.name().map_err(said)?.into_owned();
        let start = start.and_then(|start| usize::try_from(start).ok());
        let end = start.zip(usize::try_from(entry.size()).ok()).and_then(|(start, size)| start.checked_add(size));
        match start.zip(end).filter(|(_, end)| *end <= bytes.len()) {
            Some((start, end)) => files.insert(name, start..end),
            None => return Err(format!("{name} does not lie within the file: it is cut off")),
        };
    }
    Ok(files)
}

/// The number of an object.
type Id = u32;

/// An object that a pickle describes, as far as state dicts need it.
#[derive(Debug)]
enum Object<'a> {
    Class(&'a str, &'a str),
    Int(i64),
    Text(&'a str),
    /// A tuple or list.
    Items(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Call {
        callable: Id,
        arguments: Id,
    },
    /// A storage; the object is its description.
    Stored(Id),
    /// None, a boolean or a float.
    Other,
}

/// The state of the pickle's stack machine.
struct Objects<'a> {
    all: Vec<Object<'a>>,
    stack: Vec<Id>,
    /// The height of the stack at each mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    result: Id,
}

/// The bytes of a pickle that were not read yet.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("the pickle is cut off")?;
        self.0 = rest;
        Ok(taken)
    }

    /// A little-endian number.
    fn number(&mut self, bytes: usize) -> Result<u64, String> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn text(&mut self, length: u64) -> Result<&'a str, String> {
        let bytes = self.take(usize::try_from(length).map_err(|_| "the pickle is cut off")?)?;
        std::str::from_utf8(bytes).map_err(|_| "a text in the pickle is not UTF-8".into())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let length = self.0.iter().position(|byte| *byte == b'\n').ok_or("the pickle is cut off")?;
        let line = self.text(length as u64)?;
        self.take(1)?;
        Ok(line.trim_end_matches('\r'))
    }
}

impl<'a> Objects<'a> {
    fn read(pickle: &'a [u8]) -> Result<Self, String> {
        let mut objects =
            Self { all: vec![Object::Other], stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), result: 0 };
        let mut bytes = Bytes(pickle);
        while !objects.step(&mut bytes)? {}
        objects.result = objects.pop()?;
        Ok(objects)
    }

    fn get(&self, id: Id) -> &Object<'a> {
        &self.all[id as usize]
    }

    fn push(&mut self, object: Object<'a>) {
        self.stack.push(self.all.len() as Id);
        self.all.push(object);
    }

    fn pop(&mut self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.pop().filter(|_| self.stack.len() >= floor).ok_or_else(|| "the pickle is out of order".into())
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| "the pickle is out of order".into())
    }

    /// Removes everything above the last mark.
    fn marked(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("the pickle is out of order")?;
        Ok(self.stack.split_off(mark))
    }

    fn last(&mut self, count: usize) -> Result<Vec<Id>, String> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        Ok(items)
    }

    /// Runs one instruction; returns whether it was the last.
    fn step(&mut self, bytes: &mut Bytes<'a>) -> Result<bool, String> {
        let code = bytes.take(1)?[0];
        match code {
            0x80 => drop(bytes.take(1)?), // the protocol
            0x95 => drop(bytes.take(8)?), // the length of a frame
            b'.' => return Ok(true),
            b'c' => {
                let class = Object::Class(bytes.line()?, bytes.line()?);
                self.push(class);
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (&Object::Text(module), &Object::Text(name)) = (self.get(module), self.get(name)) else {
                    return Err("a class in the pickle has no name".into());
                };
                self.push(Object::Class(module, name));
            }
            b'K' => self.int(bytes.number(1)? as i64),
            b'M' => self.int(bytes.number(2)? as i64),
            b'J' => self.int(i64::from(bytes.number(4)? as i32)),
            0x8a => {
                let length = bytes.number(1)? as usize;
                if length > 8 {
                    return Err("a number in the pickle is too large".into());
                }
                let number = bytes.number(length)?;
                let unused = 64 - 8 * length as u32;
                // Shifted up and down again, the sign fills what is unused.
                self.int(number.checked_shl(unused).map_or(0, |number| number as i64 >> unused));
            }
            b'G' => {
                bytes.take(8)?;
                self.push(Object::Other);
            }
            b'N' | 0x88 | 0x89 => self.stack.push(0),
            b'X' | b'T' => self.text(bytes, 4)?,
            0x8c | b'U' => self.text(bytes, 1)?,
            0x8d => self.text(bytes, 8)?,
            b')' | b']' => self.push(Object::Items(Vec::new())),
            b'}' => self.push(Object::Dict(Vec::new())),
            b'(' => self.marks.push(self.stack.len()),
            b't' | b'l' => {
                let items = self.marked()?;
                self.push(Object::Items(items));
            }
            b'd' => {
                let items = self.marked()?;
                self.push(Object::Dict(pairs(&items)?));
            }
            0x85..=0x87 => {
                let items = self.last(usize::from(code - 0x84))?;
                self.push(Object::Items(items));
            }
            b'a' | b'e' => {
                let items = if code == b'a' { self.last(1)? } else { self.marked()? };
                let list = self.top()?;
                match &mut self.all[list as usize] {
                    Object::Items(list) => list.extend(items),
                    _ => return Err("the pickle appends to what is no list".into()),
                }
            }
            b's' | b'u' => {
                let items = if code == b's' { self.last(2)? } else { self.marked()? };
                let (items, dict) = (pairs(&items)?, self.top()?);
                match &mut self.all[dict as usize] {
                    Object::Dict(dict) => dict.extend(items),
                    _ => return Err("the pickle sets an item of what is no dict".into()),
                }
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.push(match self.get(callable) {
                    Object::Class("collections", "OrderedDict" | "defaultdict") => Object::Dict(Vec::new()),
                    _ => Object::Call { callable, arguments },
                });
            }
            b'b' => drop(self.pop()?), // attributes, such as a state dict's versions
            b'Q' => {
                let described = self.pop()?;
                self.push(Object::Stored(described));
            }
            b'0' => drop(self.pop()?),
            b'q' => self.memorise(bytes.number(1)? as u32)?,
            b'r' => self.memorise(bytes.number(4)? as u32)?,
            0x94 => self.memorise(self.memo.len() as u32)?,
            b'h' => self.recall(bytes.number(1)? as u32)?,
            b'j' => self.recall(bytes.number(4)? as u32)?,
            other => return Err(format!("the pickle has an instruction that no state dict needs (0x{other:02x})")),
        }
        Ok(false)
    }

    fn int(&mut self, number: i64) {
        self.push(Object::Int(number));
    }

    fn text(&mut self, bytes: &mut Bytes<'a>, size: usize) -> Result<(), String> {
        let length = bytes.number(size)?;
        let text = bytes.text(length)?;
        self.push(Object::Text(text));
        Ok(())
    }

    fn memorise(&mut self, number: u32) -> Result<(), String> {
        self.memo.insert(number, self.top()?);
        Ok(())
    }

    fn recall(&mut self, number: u32) -> Result<(), String> {
        let id = *self.memo.get(&number).ok_or("the pickle recalls what it never made")?;
        self.stack.push(id);
        Ok(())
    }

    fn items(&self, id: Id) -> &[Id] {
        if let Object::Items(items) = self.get(id) { items } else { &[] }
    }

    /// The arguments from which a tensor is rebuilt: storage, offset, shape, strides; `None` if the object is no tensor.
    fn tensor(&self, value: Id) -> Option<&[Id]> {
        let Object::Call { callable, arguments } = self.get(value) else { return None };
        let Object::Class(module, name) = self.get(*callable) else { return None };
        let arguments = self.items(*arguments);
        match (*module, *name) {
            ("torch._utils", "_rebuild_tensor_v2") => Some(arguments),
            // Wrappers of a tensor: the first argument is the call itself, or the called function, with its arguments as the third.
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                let Object::Call { callable, arguments } = self.get(*arguments.first()?) else { return None };
                let Object::Class("torch._utils", "_rebuild_tensor_v2") = self.get(*callable) else { return None };
                Some(self.items(*arguments))
            }
            ("torch._tensor", "_rebuild_from_type_v2") => {
                let Object::Class("torch._utils", "_rebuild_tensor_v2") = self.get(*arguments.first()?) else {
                    return None;
                };
                Some(self.items(*arguments.get(2)?))
            }
            _ => None,
        }
    }

    /// The sizes of a shape or strides, none of them negative.
    fn sizes(&self, id: Id) -> Result<Vec<usize>, String> {
        let size = |id: &Id| match self.get(*id) {
            Object::Int(size) => usize::try_from(*size).map_err(|_| format!("{size} is no size")),
            _ => Err("a size is no number".into()),
        };
        let ids = self.items(id);
        if ids.len() > RANK {
            return Err(format!("{} dimensions", ids.len()));
        }
        ids.iter().map(size).collect()
    }

    /// Where a tensor's values are; `None` for types that no model here uses.
    fn held(
        &self,
        name: &str,
        arguments: &[Id],
        file: impl Fn(&str) -> Option<Range<usize>>,
    ) -> Result<Option<Held>, String> {
        let &[storage, offset, shape, strides, ..] = arguments else { return Err("its tensor has no shape".into()) };
        let Object::Stored(described) = self.get(storage) else { return Err("its tensor has no storage".into()) };
        let &[_, class, key, ..] = self.items(*described) else { return Err("its storage is not described".into()) };
        let (Object::Class(_, class), Object::Text(key)) = (self.get(class), self.get(key)) else {
            return Err("its storage is not described".into());
        };
        let dtype = match *class {
            "FloatStorage" => DType::F32,
            "DoubleStorage" => DType::F64,
            "HalfStorage" => DType::F16,
            "BFloat16Storage" => DType::BF16,
            "ByteStorage" => DType::U8,
            "LongStorage" => DType::I64,
            _ => return Ok(None),
        };
        let Object::Int(offset) = self.get(offset) else { return Err("its offset is no number".into()) };
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        let file = file(key).ok_or_else(|| format!("its values (data/{key}) are not in the file"))?;
        let size = dtype.size_in_bytes();
        let bytes = |values: usize| values.checked_mul(size);
        let values = shape.iter().try_fold(1usize, |values, size| values.checked_mul(*size)).and_then(bytes);
        let start = usize::try_from(*offset).ok().and_then(bytes).and_then(|start| start.checked_add(file.start));
        let end = start.zip(values).and_then(|(start, values)| start.checked_add(values));
        let part = start.zip(end).map(|(start, end)| start..end).filter(|part| part.end <= file.end);
        let part =
            part.ok_or_else(|| format!("its shape {shape:?} needs more values than the {} bytes there", file.len()))?;
        let forwards = || shape.iter().zip(&strides);
        let reversed = match () {
            () if shape.len() != strides.len() => return Err("its shape and its strides do not belong together".into()),
            () if shape.contains(&0) || is_dense(forwards().rev()) => false,
            () if is_dense(forwards()) => true,
            () => {
                return Err(format!("its values are not in a row (shape {shape:?}, strides {strides:?}); save a copy"));
            }
        };
        Ok(Some(Held { name: name.to_string(), shape, dtype, part, reversed }))
    }
}

/// Whether values are contiguous with the first of these dimensions varying fastest.
fn is_dense<'a>(mut dimensions: impl Iterator<Item = (&'a usize, &'a usize)>) -> bool {
    let mut next = 1usize;
    dimensions.all(|(size, stride)| {
        let good = *size <= 1 || *stride == next;
        next = next.saturating_mul(*size);
        good
    })
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, String> {
    match items.as_chunks() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err("the pickle has a key without its value".into()),
    }
}

#[cfg(test)]
mod tests;
