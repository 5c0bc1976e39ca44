//! How segments are put together into batches.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, DeviceLocation, Result, Tensor};

use crate::ops::attention::segment::Segment;

/// Scores of one batch, at most, unless one segment has more: a quarter of a gigabyte in f32.
pub const SCORES_AT_ONCE: usize = 1 << 26;
/// Keys that single queries share are left where they are from so many on.
const SHARED_FROM: usize = 64;

/// Rows of a matrix.
pub(super) enum Rows {
    Range(Range<usize>),
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

/// Segments that are worked on as one.
pub(super) struct Batch {
    pub(super) segments: usize,
    /// The same number for each segment.
    pub(super) queries: Rows,
    /// The same number for each segment; what a segment has not stands behind a mask.
    pub(super) keys: Rows,
    /// What is added to the scores, `[segments, 1, n or 1, keys]`.
    pub(super) mask: Option<Tensor>,
    /// Keys of whole families of segments, which are not among `keys`.
    pub(super) shared: Option<Shared>,
}

/// A range of keys for each family of a batch, all of one length.
pub(super) struct Shared {
    pub(super) families: usize,
    pub(super) keys: Rows,
}

/// The batches of a list of segments.
pub(super) struct Plan {
    pub(super) batches: Vec<Batch>,
    /// Where each query stands in what the batches give, one behind the other; behind them a row of zeros.
    order: Rows,
    /// For each time that a key is seen, where its gradient stands in what the batches give; behind them a row of zeros.
    returns: Vec<Rows>,
    /// How many keys there are.
    keys: usize,
    device: Device,
}

/// A segment with what it sees before its own keys.
struct Whole<'a> {
    segment: &'a Segment,
    /// Left where it is.
    shared: Range<usize>,
    /// The other keys, in order.
    keys: Vec<u32>,
}

/// What the plan of a layer is found by in the next one.
type Known = (Arc<[Segment]>, (usize, usize, usize), DeviceLocation, bool, Arc<Plan>);

thread_local! {
    /// The last plan: all layers of a pass have the same segments.
    static LAST: RefCell<Option<Known>> = const { RefCell::new(None) };
}

impl Plan {
    /// Of `tq` queries and `tk` keys; `trained` if [`Plan::back_to_keys`] is wanted.
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

    /// What the batches give for their queries, in the order of the queries; zeros for those in no batch.
    pub(super) fn in_order(&self, parts: Vec<Tensor>, width: usize) -> Result<Tensor> {
        self.order.select(&self.joined(parts, width)?)
    }

    /// The sum of what the batches give for each key.
    pub(super) fn back_to_keys(&self, parts: Vec<Tensor>, width: usize) -> Result<Tensor> {
        let parts = self.joined(parts, width)?;
        let mut returns = self.returns.iter().map(|rows| rows.select(&parts));
        let first = returns.next().unwrap_or_else(|| Tensor::zeros((self.keys, width), DType::F32, &self.device))?;
        returns.try_fold(first, |sum, next| sum + next?)
    }

    /// Rows one behind the other, and a row of zeros.
    fn joined(&self, mut parts: Vec<Tensor>, width: usize) -> Result<Tensor> {
        parts.push(Tensor::zeros((1, width), DType::F32, &self.device)?);
        Tensor::cat(&parts, 0)
    }
}

/// Classes of segments with equally many queries, families side by side, with their number of families.
fn classes(segments: &[Segment], trained: bool) -> Vec<(usize, Vec<Whole<'_>>)> {
    // By the number of queries and the range that is shared: families.
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
    // Families of one shape; where nothing is shared, each segment is a family of its own.
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
    /// Of whole families of `members` segments; notes whose queries and keys stand where, `None` for what only fills up.
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
            // A key that the segment sees fills up: what it does not see must not be read.
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
