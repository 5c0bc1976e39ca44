//! YAML within limits: a few lines can ask for more than any memory holds (anchors that repeat anchors), or for hours
//! (thousands of brackets within each other). Both are seen before anything is made of them.

use std::cell::Cell;
use std::fmt;

use anyhow::{Context, Result, ensure};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_yaml_ng::{Mapping, Value};

/// Bytes of a configuration.
const LONGEST: usize = 1 << 20;
/// Brackets within each other.
const DEEPEST: usize = 100;
/// Values, with all repetitions.
const MOST: usize = 1 << 18;

/// The tree of a YAML text.
///
/// # Errors
/// When it is not YAML, or larger than any configuration.
pub fn read(text: &str) -> Result<Value> {
    ensure!(text.len() <= LONGEST, "{} bytes are more than a configuration has", text.len());
    ensure!(depth(text) <= DEEPEST, "more than {DEEPEST} brackets within each other");
    let left = Cell::new(MOST);
    let _ = Count(&left).deserialize(serde_yaml_ng::Deserializer::from_str(text)); // what is not YAML is said below
    ensure!(left.get() > 0, "more than {MOST} values, with all that is repeated");
    serde_yaml_ng::from_str(text).context("not YAML")
}

/// Puts a value at a dotted key, making the sections on the way.
///
/// # Errors
/// When a part of the key is empty or, before the last, has a single value.
pub fn set(tree: &mut Value, key: &str, value: Value) -> Result<()> {
    let mut place = tree;
    for part in key.split('.') {
        ensure!(!part.is_empty(), "the key {key:?} has an empty part");
        if place.is_null() {
            *place = Value::Mapping(Mapping::new());
        }
        let map = place
            .as_mapping_mut()
            .with_context(|| format!("{key}: {part:?} is inside a single value, not a section"))?;
        place = map.entry(Value::String(part.into())).or_insert(Value::Null);
    }
    *place = value;
    Ok(())
}

/// How many brackets are open at most, whatever they stand in.
fn depth(text: &str) -> usize {
    let (mut open, mut most) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// Counts values without keeping them.
#[derive(Clone, Copy)]
struct Count<'a>(&'a Cell<usize>);

impl Count<'_> {
    fn one<E: Error>(self) -> Result<(), E> {
        match self.0.get().checked_sub(1) {
            Some(left) => {
                self.0.set(left);
                Ok(())
            }
            None => Err(E::custom("too many")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Count<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Count<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.one()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.one()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.one()
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<(), E> {
        self.one()
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<(), E> {
        self.one()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.one()
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.one()
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.one()
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        self.one()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<(), D::Error> {
        self.deserialize(inner)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        self.one()?;
        while list.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.one()?;
        while map.next_key_seed(self)?.is_some() {
            map.next_value_seed(self)?;
        }
        Ok(())
    }

    fn visit_enum<A: serde::de::EnumAccess<'de>>(self, tagged: A) -> Result<(), A::Error> {
        // A tag and its value.
        let (_, value) = tagged.variant_seed(self)?;
        serde::de::VariantAccess::newtype_variant_seed(value, self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn problem(text: &str) -> String {
        format!("{:#}", read(text).unwrap_err())
    }

    #[test]
    fn what_is_written_is_read() {
        for text in
            ["", "a: 1", "a: {b: [1, 2.5, x, null, true, -3]}", "a: &b [1]\nc: *b", "a: !tag 3", "[[1]]", "~", "a: ''"]
        {
            assert_eq!(read(text).unwrap(), serde_yaml_ng::from_str::<Value>(text).unwrap(), "{text}");
        }
        assert!(problem("a: [1").contains("not YAML") && problem("a: b: c").contains("not YAML"));
    }

    #[test]
    fn what_grows_is_refused_at_once() {
        assert!(problem(&format!("a: {}", "[".repeat(200_000))).contains("brackets within each other"));
        assert!(problem(&"x".repeat(LONGEST + 1)).contains("more than a configuration has"));
        let long = format!("a: &a [{}]\n", "1,".repeat(50_000));
        let wide: String = (0..2000).map(|n| format!("k{n}: *a\n")).collect();
        assert!(problem(&(long + &wide)).contains("values, with all that is repeated"));
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let first = format!("a: &a [{}]\n", "1,".repeat(9));
        let laugh =
            names.windows(2).map(|two| format!("{}: &{} [{}]\n", two[1], two[1], format!("*{},", two[0]).repeat(9)));
        let said = problem(&(first + &laugh.collect::<String>()));
        assert!(said.contains("repeated") || said.contains("repetition"), "{said}");
    }
}
