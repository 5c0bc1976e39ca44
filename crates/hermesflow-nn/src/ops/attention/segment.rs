//! Which keys each query sees.

use std::ops::Range;

use candle_core::{Result, bail};

/// A run of queries that see the same keys.
///
/// Every query of the run sees all keys in each range of `sees`. Of its own keys `own` it sees all if `causal` is false. If
/// `causal` is true the queries are the last of their own keys, and query `i` of the run sees the first
/// `own.len() - queries.len() + i + 1` of them. A key in two ranges of one segment counts twice. A query that sees no key
/// gets zeros.
///
/// Several segments may see the same keys; in training all of them add to those keys' gradients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The queries: rows of `q`.
    pub queries: Range<usize>,
    /// Keys that every query sees: rows of `k` and `v`.
    pub sees: Vec<Range<usize>>,
    /// The queries' own keys: rows of `k` and `v`.
    pub own: Range<usize>,
    /// Whether a query sees its own keys only up to itself.
    pub causal: bool,
}

impl Segment {
    /// A segment whose queries see their own keys up to themselves.
    pub fn causal(queries: Range<usize>, own: Range<usize>) -> Self {
        Self { queries, sees: Vec::new(), own, causal: true }
    }

    /// A segment whose queries see all of their own keys.
    pub fn block(queries: Range<usize>, own: Range<usize>) -> Self {
        Self { queries, sees: Vec::new(), own, causal: false }
    }

    /// The same segment, whose queries also see all of these keys.
    pub fn seeing(mut self, keys: Range<usize>) -> Self {
        self.sees.push(keys);
        self
    }
}

/// Checks that segments hold each of `tq` queries once and only keys below `tk`, and that no causal run is longer than its own
/// keys.
///
/// # Errors
/// Names the queries and keys that do not fit.
pub(crate) fn check(segments: &[Segment], tq: usize, tk: usize) -> Result<()> {
    let mut order: Vec<&Segment> = segments.iter().collect();
    order.sort_by_key(|segment| (segment.queries.start, segment.queries.end));
    let mut next = 0;
    for segment in order {
        let Segment { queries, sees, own, causal } = segment;
        if queries.start != next || queries.end < queries.start {
            bail!("attention: expected queries from {next}, found {queries:?}");
        }
        next = queries.end;
        if let Some(range) = sees.iter().chain([own]).find(|r| r.start > r.end || r.end > tk) {
            bail!("attention: queries {queries:?} see keys {range:?} of {tk}");
        }
        if *causal && own.len() < queries.len() {
            bail!("attention: causal queries {queries:?} have only the keys {own:?}");
        }
    }
    if next != tq {
        bail!("attention: the segments hold {next} of {tq} queries");
    }
    Ok(())
}
