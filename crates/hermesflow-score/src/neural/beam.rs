//! Beam search as in transformers' `generate(num_beams)` with its defaults (4.46: `early_stopping` off).
//!
//! 1. The best `2 · beams` continuations of all beams are considered, best first. (With several closing ids: `beams
//!    · (1 + closing ids)`, if that is more.)
//! 2. A closing id among the first `beams` of them finishes its beam. The score of a finished text is its sum of
//!    log-probabilities divided by its length to the power of the length penalty; the length counts generated ids, the
//!    closing one included. The other continuations, up to `beams`, are the next beams.
//! 3. The best `beams` finished texts are kept. The search ends when there are that many and the worst of them is no
//!    worse than the best continuation would be if it ended now.
//! 4. At the largest length, the remaining beams count as finished.

/// The exponent of the length by which scores are divided.
const LENGTH_PENALTY: f64 = 1.0;
/// The initial score of all beams but one, which keeps them out of the first step, in which all beams are equal.
const SAME: f32 = -1e9;

/// A text that is still being written.
#[derive(Debug, Clone)]
struct Beam {
    ids: Vec<u32>,
    score: f32,
}

#[derive(Debug, Clone)]
struct Finished {
    ids: Vec<u32>,
    score: f64,
}

/// The state of a search; the caller computes the log-probabilities.
#[derive(Debug)]
pub(super) struct BeamSearch {
    closing: Vec<u32>,
    beams: Vec<Beam>,
    finished: Vec<Finished>,
    worst: f64,
    done: bool,
}

impl BeamSearch {
    /// A search with `width` beams, in which any of the closing ids ends a text.
    pub fn new(width: usize, closing: &[u32]) -> Self {
        let beam = |number: usize| Beam { ids: Vec::new(), score: if number == 0 { 0.0 } else { SAME } };
        let beams = (0..width.max(1)).map(beam).collect();
        Self { closing: closing.to_vec(), beams, finished: Vec::new(), worst: 1e9, done: false }
    }

    fn width(&self) -> usize {
        self.beams.len()
    }

    /// Whether no continuation can be better than the finished texts.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Makes one step, given the log-probabilities after each beam. Returns, for each new beam, the beam that it
    /// continues and the id that it adds.
    pub fn advance(&mut self, log_probabilities: &[Vec<f32>]) -> Vec<(usize, u32)> {
        let (width, length) = (self.width(), self.beams[0].ids.len() + 1);
        let candidates = self.best(log_probabilities, width * 2.max(1 + self.closing.len()));
        let mut next: Vec<(usize, u32)> = Vec::with_capacity(width);
        let mut beams = Vec::with_capacity(width);
        for (rank, &(score, parent, id)) in candidates.iter().enumerate() {
            if self.closing.contains(&id) {
                if rank < width {
                    self.finish_one(self.beams[parent].ids.clone(), score, length);
                }
                continue;
            }
            let ids = self.beams[parent].ids.iter().copied().chain([id]).collect();
            beams.push(Beam { ids, score });
            next.push((parent, id));
            if next.len() == width {
                break;
            }
        }
        let attainable = candidates.first().map_or(f64::NEG_INFINITY, |(score, _, _)| scored(*score, length));
        self.done |= self.finished.len() >= width && self.worst >= attainable;
        // A vocabulary of little more than closing ids leaves fewer beams; the missing ones repeat the last.
        while let (true, Some(last)) = (beams.len() < width, beams.last().cloned()) {
            beams.push(Beam { score: SAME, ..last });
            next.push(next[next.len() - 1]);
        }
        if beams.is_empty() {
            self.done = true;
        } else {
            self.beams = beams;
        }
        next
    }

    /// The best continuations, best first; of equal ones that of the earlier beam, then of the smaller id.
    fn best(&self, log_probabilities: &[Vec<f32>], count: usize) -> Vec<(f32, usize, u32)> {
        let mut best: Vec<(f32, usize, u32)> = Vec::with_capacity(count + 1);
        for (number, (beam, row)) in self.beams.iter().zip(log_probabilities).enumerate() {
            for (id, log_probability) in row.iter().enumerate() {
                let score = beam.score + log_probability;
                if best.len() == count && best.last().is_some_and(|(least, _, _)| score <= *least) {
                    continue;
                }
                let place = best.partition_point(|(better, _, _)| *better >= score);
                best.insert(place, (score, number, id as u32));
                best.truncate(count);
            }
        }
        best
    }

    fn finish_one(&mut self, ids: Vec<u32>, score: f32, length: usize) {
        let (score, width) = (scored(score, length), self.width());
        if self.finished.len() >= width && score <= self.worst {
            return;
        }
        self.finished.push(Finished { ids, score });
        if self.finished.len() > width {
            let worst = (1..self.finished.len())
                .fold(0, |worst, at| if self.finished[at].score < self.finished[worst].score { at } else { worst });
            self.finished.remove(worst);
        }
        self.worst = self.finished.iter().map(|finished| finished.score).fold(f64::INFINITY, f64::min);
    }

    /// The best text and its score. The closing id is included unless the text was cut at `longest` ids.
    pub fn finish(mut self, longest: usize) -> (Vec<u32>, f64) {
        if !self.done {
            for beam in self.beams.clone() {
                let length = beam.ids.len();
                self.finish_one(beam.ids, beam.score, length);
            }
        }
        let best = self.finished.into_iter().reduce(|best, next| if next.score >= best.score { next } else { best });
        let Some(Finished { mut ids, score }) = best else {
            return (Vec::new(), 0.0);
        };
        if ids.len() < longest {
            ids.extend(self.closing.first());
        }
        (ids, score)
    }
}

fn scored(score: f32, length: usize) -> f64 {
    f64::from(score) / (length.max(1) as f64).powf(LENGTH_PENALTY)
}

/// A run of columns of a region: the region, the first column, and the end.
type Run = (usize, usize, usize);

/// The cached rows of all beams: each beam has a region of rows, with one column per step. Beams that continue the same
/// one share its rows, and nothing is ever copied.
#[derive(Debug, Clone)]
pub(super) struct Regions {
    /// For each beam, its region and the runs of its history.
    beams: Vec<(usize, Vec<Run>)>,
}

impl Regions {
    pub fn new(width: usize) -> Self {
        Self { beams: (0..width).map(|region| (region, Vec::new())).collect() }
    }

    /// Makes one step: the first beam that continues another keeps its region, and further ones take free regions.
    pub fn advance(&mut self, parents: impl Iterator<Item = usize> + Clone, column: usize) {
        let width = self.beams.len();
        let mut kept = vec![false; width];
        let regions: Vec<Option<usize>> = parents
            .clone()
            .map(|parent| {
                let region = self.beams[parent].0;
                (!std::mem::replace(&mut kept[region], true)).then_some(region)
            })
            .collect();
        let mut free = (0..width).filter(|region| !kept[*region]);
        let next = parents.zip(regions).map(|(parent, region)| {
            let region = region.or_else(|| free.next()).unwrap_or(0);
            let mut runs = self.beams[parent].1.clone();
            match runs.last_mut() {
                Some((last, _, end)) if *last == region && *end == column => *end += 1,
                _ => runs.push((region, column, column + 1)),
            }
            (region, runs)
        });
        self.beams = next.collect();
    }

    /// For each beam, the runs of its rows, given the first row of all regions and their size; its newest row is the
    /// last.
    pub fn rows(&self, start: usize, size: usize) -> impl Iterator<Item = Vec<std::ops::Range<usize>>> {
        self.beams.iter().map(move |(_, runs)| {
            runs.iter().map(|(region, first, end)| start + region * size + first..start + region * size + end).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const CLOSING: u32 = 0;
    const VOCABULARY: usize = 4;

    /// Log-probabilities that depend on all that was said, in no obvious way.
    fn model(ids: &[u32]) -> Vec<f32> {
        let seed = ids.iter().fold(7u32, |seed, id| seed.wrapping_mul(31).wrapping_add(id + 1));
        let logits: Vec<f32> = (0..VOCABULARY as u32)
            .map(|id| (seed.wrapping_mul(2_654_435_761) >> (3 * id + 8) & 255) as f32 / 64.0)
            .collect();
        let sum: f32 = logits.iter().map(|x| x.exp()).sum();
        logits.iter().map(|x| x - sum.ln()).collect()
    }

    fn search(width: usize, longest: usize) -> (Vec<u32>, f64) {
        let mut search = BeamSearch::new(width, &[CLOSING]);
        let mut said = vec![Vec::new(); width];
        for _ in 0..longest {
            let rows: Vec<Vec<f32>> = said.iter().map(|ids| model(ids)).collect();
            let next = search.advance(&rows);
            said = next.iter().map(|(parent, id)| [said[*parent].clone(), vec![*id]].concat()).collect();
            if search.is_done() {
                break;
            }
        }
        search.finish(longest)
    }

    #[test]
    fn one_beam_is_greedy() {
        let mut ids = Vec::new();
        while ids.len() < 9 && ids.last() != Some(&CLOSING) {
            let row = model(&ids);
            let best = (0..VOCABULARY).reduce(|best, id| if row[id] > row[best] { id } else { best }).unwrap();
            ids.push(best as u32);
        }
        assert_eq!(search(1, 9).0, ids);
    }

    #[test]
    fn beams_enough_for_everything_find_the_best_of_all_texts() {
        fn all(ids: Vec<u32>, score: f32, longest: usize, best: &mut (Vec<u32>, f64)) {
            if ids.len() == longest || ids.last() == Some(&CLOSING) {
                let score = f64::from(score) / ids.len() as f64;
                if score > best.1 {
                    *best = (ids, score);
                }
                return;
            }
            for (id, more) in model(&ids).into_iter().enumerate() {
                all([ids.clone(), vec![id as u32]].concat(), score + more, longest, best);
            }
        }
        let mut best = (Vec::new(), f64::NEG_INFINITY);
        all(Vec::new(), 0.0, 5, &mut best);
        let (ids, score) = search(256, 5);
        assert_eq!(ids, best.0);
        assert!((score - best.1).abs() < 1e-5);
        assert!(search(3, 5).1 <= score + 1e-6);
    }

    #[test]
    fn regions_share_rows_and_never_overwrite() {
        let (width, steps) = (3, 12);
        let mut regions = Regions::new(width);
        let mut written = vec![None; width * steps];
        let mut said: Vec<Vec<usize>> = vec![Vec::new(); width];
        for column in 0..steps {
            let parents: Vec<usize> =
                (0..width).map(|beam| (column * 7 + beam * beam * 5 + column / 2) % width).collect();
            regions.advance(parents.iter().copied(), column);
            said = parents
                .iter()
                .enumerate()
                .map(|(beam, parent)| [said[*parent].clone(), vec![100 * column + beam]].concat())
                .collect();
            for (beam, runs) in regions.rows(0, steps).enumerate() {
                let row = runs.last().unwrap().end - 1;
                assert!(written[row].replace(said[beam][column]).is_none());
            }
            for (beam, runs) in regions.rows(0, steps).enumerate() {
                let read: Vec<usize> = runs.into_iter().flatten().map(|row| written[row].unwrap()).collect();
                assert_eq!(read, said[beam]);
            }
        }
    }
}
