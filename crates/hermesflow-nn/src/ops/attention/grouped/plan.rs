//! Segments gathered into batches of one shape.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, DeviceLocation, Result, Tensor};

use crate::ops::attention::segment::Segment;

/// Most scores that attention outside the CPU holds at a time, unless a single segment has more: a quarter of a gigabyte in f32.
pub const SCORES_AT_ONCE: usize = 1 << 26;
/// Fewest keys that single queries share for which the keys are not copied for each query.
const SHARED_FROM: usize = 64;

/// Rows of a matrix.
pub(super) enum Rows {
    /// Consecutive rows.
    Range(Range<usize>),
    /// Rows by number, in u32 on the device.
    Listed(Tensor),
}

impl Rows {
    fn new(rows: Vec<u32>, device: &Device) -> Result<Self> {
        let start = rows.first().map_or(0, |row| *row as usize);
        if rows.iter().enumerate().all(|(at, row)| *row as usize == start + at) {
            return Ok(Self::Range(start..start + rows.len()));
        }
        Ok(Self::Listed(Tensor::new(rows, device)?))
    }

    /// These rows of `x [.., width]`.
    pub(super) fn select(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Range(range) if *range == (0..x.dim(0)?) => Ok(x.clone()),
            Self::Range(range) => x.narrow(0, range.start, range.len()),
            Self::Listed(rows) => x.index_select(rows, 0),
        }
    }
}

/// Segments that are computed together.
pub(super) struct Batch {
    /// The number of segments.
    pub(super) segments: usize,
    /// The queries, equally many of each segment.
    pub(super) queries: Rows,
    /// The keys, equally many for each segment; surplus ones are hidden by the mask.
    pub(super) keys: Rows,
    /// What is added to the scores, `[segments, 1, n or 1, keys]`: 0 or minus infinity.
    pub(super) mask: Option<Tensor>,
    /// Keys that whole families of segments share, which are not among `keys`.
    pub(super) shared: Option<Shared>,
}

/// One range of keys for each family of segments in a batch, all of one length.
pub(super) struct Shared {
    /// The number of families.
    pub(super) families: usize,
    /// The keys of all families.
    pub(super) keys: Rows,
}

/// The batches of a list of segments.
pub(super) struct Plan {
    pub(super) batches: Vec<Batch>,
    /// The row of each query in the concatenated results of the batches, whose last row is zeros.
    order: Rows,
    /// The row of each key's gradient in the concatenated gradients of the batches, whose last row is zeros: one list for each time
    /// that a key is seen.
    returns: Vec<Rows>,
    /// The number of keys.
    keys: usize,
    device: Device,
}

/// A segment with its keys.
struct Whole<'a> {
    segment: &'a Segment,
    /// The keys that it shares with its family, which are not copied.
    shared: Range<usize>,
    /// The other keys, in order.
    keys: Vec<u32>,
}

/// A plan with everything that decided it.
type Known = (Arc<[Segment]>, (usize, usize, usize), DeviceLocation, bool, Arc<Plan>);

thread_local! {
    /// The last plan, because all layers of a pass have the same segments.
    static LAST: RefCell<Option<Known>> = const { RefCell::new(None) };
}

impl Plan {
    /// The plan for `tq` queries and `tk` keys; `trained` says whether [`Plan::back_to_keys`] will be called.
    pub(super) fn of(
        segments: &Arc<[Segment]>,
        (tq, tk, heads): (usize, usize, usize),
        device: &Device,
        trained: bool,
    ) -> Result<Arc<Self>> {
        let (size, place) = ((tq, tk, heads), device.location());
        let known = LAST.with_borrow(|last| match last {
            Some((of, sizes, location, backward, plan))
                if Arc::ptr_eq(of, segments) && *sizes == size && *location == place && *backward == trained =>
            {
                Some(plan.clone())
            }
            _ => None,
        });
        if let Some(plan) = known {
            return Ok(plan);
        }
        let plan = Arc::new(Self::new(segments, size, device, trained)?);
        LAST.set(Some((segments.clone(), size, place, trained, plan.clone())));
        Ok(plan)
    }

    fn new(
        segments: &[Segment],
        (tq, tk, heads): (usize, usize, usize),
        device: &Device,
        trained: bool,
    ) -> Result<Self> {
        let (mut batches, mut queries, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for (families, class) in classes(segments, trained) {
            let longest = class.iter().map(|whole| whole.keys.len()).max().unwrap_or(0);
            let (n, members) = (class[0].segment.queries.len(), class.len() / families);
            let scores = members * heads * n * longest.max(class[0].shared.len());
            for class in class.chunks((SCORES_AT_ONCE / scores.max(1)).max(1) * members) {
                batches.push(Batch::new(class, members, device, (&mut queries, &mut keys))?);
            }
        }
        let mut order = vec![queries.len() as u32; tq];
        for (at, query) in queries.iter().enumerate() {
            order[*query as usize] = at as u32;
        }
        let mut returns: Vec<Vec<u32>> = Vec::new();
        if trained {
            let mut seen = vec![0; tk];
            for (at, key) in keys.iter().enumerate().filter_map(|(at, key)| Some((at, (*key)? as usize))) {
                if seen[key] == returns.len() {
                    returns.push(vec![keys.len() as u32; tk]);
                }
                returns[seen[key]][key] = at as u32;
                seen[key] += 1;
            }
        }
        Ok(Self {
            batches,
            order: Rows::new(order, device)?,
            returns: returns.into_iter().map(|rows| Rows::new(rows, device)).collect::<Result<_>>()?,
            keys: tk,
            device: device.clone(),
        })
    }

    /// The results of the batches in the order of the queries, with zeros for queries in no batch.
    pub(super) fn in_order(&self, parts: Vec<Tensor>, width: usize) -> Result<Tensor> {
        self.order.select(&self.joined(parts, width)?)
    }

    /// The sum of the gradients of each key over all batches.
    pub(super) fn back_to_keys(&self, parts: Vec<Tensor>, width: usize) -> Result<Tensor> {
        let parts = self.joined(parts, width)?;
        let mut returns = self.returns.iter().map(|rows| rows.select(&parts));
        let first = returns.next().unwrap_or_else(|| Tensor::zeros((self.keys, width), DType::F32, &self.device))?;
        returns.try_fold(first, |sum, next| sum + next?)
    }

    /// The concatenated rows, followed by a row of zeros.
    fn joined(&self, mut parts: Vec<Tensor>, width: usize) -> Result<Tensor> {
        parts.push(Tensor::zeros((1, width), DType::F32, &self.device)?);
        Tensor::cat(&parts, 0)
    }
}

/// Segments by shape, families together, each class with its number of families. A class has equally many queries per segment and
/// equally many shared keys.
fn classes(segments: &[Segment], trained: bool) -> Vec<(usize, Vec<Whole<'_>>)> {
    // Families: segments with the same number of queries and the same shared range.
    let mut families: BTreeMap<(usize, usize, usize), Vec<Whole>> = BTreeMap::new();
    let seeing = segments.iter().filter(|segment| {
        !segment.queries.is_empty() && segment.sees.iter().chain([&segment.own]).any(|range| !range.is_empty())
    });
    for segment in seeing {
        let first = segment.sees.first().filter(|range| {
            !trained && segment.queries.len() == 1 && range.len() >= SHARED_FROM && !segment.own.is_empty()
        });
        let shared = first.cloned().unwrap_or(0..0);
        let others = segment.sees.iter().skip(usize::from(first.is_some())).chain([&segment.own]);
        let keys = others.flat_map(|range| range.clone()).map(|key| key as u32).collect();
        let family = (segment.queries.len(), shared.len(), shared.start);
        families.entry(family).or_default().push(Whole { segment, shared, keys });
    }
    // Classes: families of one shape. Where nothing is shared, each segment is a family of its own.
    let mut classes: BTreeMap<(usize, usize, usize), (usize, Vec<Whole>)> = BTreeMap::new();
    for ((queries, shared, _), family) in families {
        let (members, count) = if shared == 0 { (1, family.len()) } else { (family.len(), 1) };
        let (known, class) = classes.entry((queries, shared, members)).or_default();
        *known += count;
        class.extend(family);
    }
    classes.into_values().collect()
}

impl Batch {
    /// A batch of whole families of `members` segments each. Appends its queries and keys to the given lists, `None` for keys that
    /// only fill up.
    fn new(
        class: &[Whole],
        members: usize,
        device: &Device,
        (all_queries, all_keys): (&mut Vec<u32>, &mut Vec<Option<u32>>),
    ) -> Result<Self> {
        let n = class[0].segment.queries.len();
        let longest = class.iter().map(|whole| whole.keys.len()).max().unwrap_or(0);
        let causal = n > 1 && class.iter().any(|whole| whole.segment.causal);
        let lines = if causal { n } else { 1 };
        let (mut queries, mut keys) = (Vec::with_capacity(class.len() * n), Vec::with_capacity(class.len() * longest));
        let mut mask = vec![0f32; class.len() * lines * longest];
        for (whole, mask) in class.iter().zip(mask.chunks_exact_mut((lines * longest).max(1))) {
            queries.extend(whole.segment.queries.clone().map(|query| query as u32));
            // A key that the segment sees fills up, because a key that it does not see may be uninitialised.
            let fill = whole.keys.first().copied().unwrap_or(0);
            keys.extend(whole.keys.iter().copied().chain(std::iter::repeat_n(fill, longest - whole.keys.len())));
            let seen = whole.keys.iter().copied().map(Some);
            all_keys.extend(seen.chain(std::iter::repeat_n(None, longest - whole.keys.len())));
            for (line, mask) in mask.chunks_exact_mut(longest).enumerate() {
                let hidden = if causal && whole.segment.causal { n - 1 - line } else { 0 };
                mask[whole.keys.len() - hidden..].fill(f32::NEG_INFINITY);
            }
        }
        all_queries.extend(&queries);
        let masked = mask.iter().any(|value| *value != 0.0);
        let shared = class[0].shared.len();
        let shared = if shared == 0 {
            None
        } else {
            let heads_of = class.chunks(members);
            let keys = heads_of.clone().flat_map(|family| family[0].shared.clone()).map(|key| key as u32).collect();
            Some(Shared { families: heads_of.len(), keys: Rows::new(keys, device)? })
        };
        Ok(Self {
            segments: class.len(),
            queries: Rows::new(queries, device)?,
            keys: Rows::new(keys, device)?,
            mask: masked.then(|| Tensor::from_vec(mask, (class.len(), 1, lines, longest), device)).transpose()?,
            shared,
        })
    }
}
