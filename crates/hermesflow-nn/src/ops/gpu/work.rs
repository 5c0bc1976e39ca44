//! The work of the attention kernels as lists: tiles of queries with the blocks of keys that they see, or tiles of keys with the
//! blocks of queries that see them.
//!
//! A tile is a run of consecutive rows of one side. Several short segments may share a tile, so that keys that all of them see are
//! read once (decoding: many replies about one picture). This file is plain Rust, so that it is tested without a GPU.

use std::ops::Range;

use crate::ops::attention::segment::Segment;

/// Consecutive rows of one side, and their blocks of the other side. The kernels read these four numbers in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Tile {
    /// The first row.
    pub(super) row: i32,
    /// The number of rows.
    pub(super) rows: i32,
    /// The index of the first block.
    pub(super) first: i32,
    /// The index after the last block.
    pub(super) last: i32,
}

/// Consecutive rows of the other side. Query `q`, counted from the first of its tile or block, sees key `k` if
/// `begin <= q < end` and `k < limit + q`. The kernels read these five numbers in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Block {
    /// The first row.
    pub(super) row: i32,
    /// The number of rows.
    pub(super) rows: i32,
    /// The first query that sees the keys.
    pub(super) begin: i32,
    /// The query after the last one that sees the keys.
    pub(super) end: i32,
    /// The end of the keys that query 0 sees.
    pub(super) limit: i32,
}

/// A limit that hides no key.
const NONE: i32 = 1 << 30;

/// Tiles with their blocks, which all tiles list one after the other.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) tiles: Vec<Tile>,
    pub(super) blocks: Vec<Block>,
}

impl Work {
    /// Tiles of at most `rows` queries with blocks of at most `size` keys.
    pub(super) fn of_queries(segments: &[Segment], rows: usize, size: usize) -> Self {
        let mut order: Vec<&Segment> = segments.iter().filter(|segment| !segment.queries.is_empty()).collect();
        order.sort_by_key(|segment| segment.queries.start);
        let mut work = Self::default();
        let mut rest = order.as_slice();
        while let Some(segment) = rest.first() {
            // The following segments that fit into the same tile and see the same range of keys first.
            let start = segment.queries.start;
            let fits =
                |other: &&&Segment| other.queries.end - start <= rows && other.sees.first() == segment.sees.first();
            let together = rest.iter().take_while(fits).count();
            if together > 1 && !segment.sees.is_empty() {
                work.tile_of(&rest[..together], size);
                rest = &rest[together..];
                continue;
            }
            for first in segment.queries.clone().step_by(rows) {
                let queries = first..(first + rows).min(segment.queries.end);
                let from = work.blocks.len();
                for (keys, limit) in seen_by(segment) {
                    let limit = limit.map_or(NONE, |limit| limit + (first - segment.queries.start) as i32);
                    work.keys(keys, size, 0..queries.len() as i32, limit);
                }
                work.close(queries, from);
            }
            rest = &rest[1..];
        }
        work
    }

    /// Adds one tile of whole segments that see the same range of keys first.
    fn tile_of(&mut self, segments: &[&Segment], size: usize) {
        let queries = segments[0].queries.start..segments[segments.len() - 1].queries.end;
        let from = self.blocks.len();
        // Further ranges that all of them see in this order are shared, too.
        let mut common = segments[0].sees.len();
        for segment in segments {
            common = segment.sees.iter().zip(&segments[0].sees).take(common).take_while(|(a, b)| a == b).count();
        }
        for keys in &segments[0].sees[..common] {
            self.keys(keys.clone(), size, 0..queries.len() as i32, NONE);
        }
        for segment in segments {
            let begin = (segment.queries.start - queries.start) as i32;
            let rows = begin..begin + segment.queries.len() as i32;
            for (keys, limit) in seen_by(segment).skip(common) {
                self.keys(keys, size, rows.clone(), limit.map_or(NONE, |limit| limit - begin));
            }
        }
        self.close(queries, from);
    }

    /// Adds blocks of keys for some queries of a tile.
    fn keys(&mut self, keys: Range<usize>, size: usize, rows: Range<i32>, limit: i32) {
        for row in keys.clone().step_by(size) {
            // Keys that the last of these queries does not see are seen by no other.
            if row as i32 >= limit.saturating_add(rows.end - 1) {
                break;
            }
            let count = size.min(keys.end - row);
            self.blocks.push(Block { row: row as i32, rows: count as i32, begin: rows.start, end: rows.end, limit });
        }
    }

    /// Adds the tile of the blocks from `from` on.
    fn close(&mut self, rows: Range<usize>, from: usize) {
        let (first, last) = (from as i32, self.blocks.len() as i32);
        self.tiles.push(Tile { row: rows.start as i32, rows: rows.len() as i32, first, last });
    }

    /// Tiles of at most `rows` of the `keys` keys with blocks of at most `size` queries; every key is in a tile.
    pub(super) fn of_keys(segments: &[Segment], keys: usize, rows: usize, size: usize) -> Self {
        // Between two neighbouring edges all keys are seen by the same segments.
        let ranges = |segment: &Segment| segment.sees.iter().chain([&segment.own]).cloned().collect::<Vec<_>>();
        let mut edges: Vec<usize> =
            segments.iter().flat_map(ranges).flat_map(|range| [range.start, range.end]).collect();
        edges.extend([0, keys]);
        edges.sort_unstable();
        edges.dedup();
        let seen: Vec<(&Segment, Range<usize>, Option<i32>)> = segments
            .iter()
            .filter(|segment| !segment.queries.is_empty())
            .flat_map(|segment| seen_by(segment).map(move |(range, limit)| (segment, range, limit)))
            .collect();
        let mut work = Self::default();
        for pair in edges.windows(2) {
            let meeting: Vec<_> =
                seen.iter().filter(|(_, range, _)| range.start <= pair[0] && pair[1] <= range.end).collect();
            for first in (pair[0]..pair[1]).step_by(rows) {
                let tile = first..(first + rows).min(pair[1]);
                let from = work.blocks.len();
                for (segment, _, limit) in &meeting {
                    for query in segment.queries.clone().step_by(size) {
                        let count = size.min(segment.queries.end - query);
                        let limit = limit.map_or(NONE, |limit| limit + (query - segment.queries.start) as i32);
                        // Queries that do not see the tile's first key see none of it.
                        if first as i32 >= limit.saturating_add(count as i32 - 1) {
                            continue;
                        }
                        let (row, rows) = (query as i32, count as i32);
                        work.blocks.push(Block { row, rows, begin: 0, end: rows, limit });
                    }
                }
                work.close(tile, from);
            }
        }
        work
    }
}

/// The ranges of keys that a segment sees; the last are its own, if it is causal with the limit of its first query.
fn seen_by(segment: &Segment) -> impl Iterator<Item = (Range<usize>, Option<i32>)> {
    let Segment { queries, own, causal, .. } = segment;
    let limit = causal.then(|| (own.start + own.len() - queries.len() + 1) as i32);
    segment.sees.iter().map(|range| (range.clone(), None)).chain([(own.clone(), limit)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each query meets each key, as the segments say.
    fn told(segments: &[Segment], (queries, keys): (usize, usize)) -> Vec<Vec<u32>> {
        let mut met = vec![vec![0; keys]; queries];
        for Segment { queries, sees, own, causal } in segments {
            for (i, query) in queries.clone().enumerate() {
                let own = own.start..if *causal { own.start + own.len() - queries.len() + i + 1 } else { own.end };
                sees.iter().chain([&own]).flat_map(Clone::clone).for_each(|key| met[query][key] += 1);
            }
        }
        met
    }

    fn done(work: &Work, (queries, keys): (usize, usize), by_keys: bool) -> Vec<Vec<u32>> {
        let mut met = vec![vec![0; keys]; queries];
        for tile in &work.tiles {
            for block in &work.blocks[tile.first as usize..tile.last as usize] {
                let (q, k) = if by_keys { (block.row, tile.row) } else { (tile.row, block.row) };
                let (of_q, of_k) = if by_keys { (block.rows, tile.rows) } else { (tile.rows, block.rows) };
                for i in (0..of_q).filter(|i| (block.begin..block.end).contains(i)) {
                    (k..k + of_k).filter(|key| *key < block.limit + i).for_each(|key| {
                        met[(q + i) as usize][key as usize] += 1;
                    });
                }
            }
        }
        met
    }

    fn cases() -> Vec<(Vec<Segment>, (usize, usize))> {
        let training = vec![
            Segment::causal(0..9, 0..9),
            Segment::block(9..50, 9..50).seeing(0..9),
            Segment::block(50..91, 50..91).seeing(0..9),
            Segment::causal(91..120, 91..120).seeing(9..50),
        ];
        // Replies of two pictures, the second with two questions; the last reply is longer.
        let reply = |row: usize, sees: &[Range<usize>], own: Range<usize>| Segment {
            queries: row..row + 1,
            sees: sees.to_vec(),
            own,
            causal: true,
        };
        let decoding = vec![
            reply(0, &[0..40, 40..47], 100..103),
            reply(1, &[0..40, 40..47], 110..113),
            reply(2, &[50..80, 80..85], 120..121),
            reply(3, &[50..80, 85..99], 130..131),
            reply(4, &[50..80, 85..99], 140..160),
        ];
        let continued = vec![Segment::causal(0..5, 3..20), Segment::block(5..5, 0..3), Segment::block(5..8, 2..2)];
        vec![(training, (120, 120)), (decoding, (5, 160)), (continued, (8, 21))]
    }

    #[test]
    fn every_query_meets_what_its_segment_says() {
        for (segments, size) in cases() {
            let expected = told(&segments, size);
            for (rows, block) in [(128, 64), (16, 32), (16, 8), (1, 1), (3, 7)] {
                let work = Work::of_queries(&segments, rows, block);
                assert_eq!(done(&work, size, false), expected, "{rows} {block} {segments:?}");
                let covered: i32 = work.tiles.iter().map(|tile| tile.rows).sum();
                assert_eq!(covered as usize, size.0, "every query is in a tile");
                let work = Work::of_keys(&segments, size.1, rows, block);
                assert_eq!(done(&work, size, true), expected, "keys {rows} {block} {segments:?}");
                let covered: i32 = work.tiles.iter().map(|tile| tile.rows).sum();
                assert_eq!(covered as usize, size.1, "every key is in a tile");
                assert!(work.tiles.iter().all(|tile| tile.rows <= rows as i32));
                assert!(work.blocks.iter().all(|one| one.rows <= block as i32));
            }
        }
    }

    #[test]
    fn replies_about_one_picture_read_it_once() {
        let (segments, _) = cases().swap_remove(1);
        let work = Work::of_queries(&segments, 16, 64);
        assert_eq!(work.tiles.len(), 2);
        // 40 and 7 keys for both, then each one's own; 30 keys for three, then a question and an own range for each.
        assert_eq!(work.tiles.map_blocks(), [4, 7]);
    }

    trait Blocks {
        fn map_blocks(&self) -> Vec<i32>;
    }

    impl Blocks for Vec<Tile> {
        fn map_blocks(&self) -> Vec<i32> {
            self.iter().map(|tile| tile.last - tile.first).collect()
        }
    }
}
