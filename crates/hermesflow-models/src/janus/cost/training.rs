//! The memory and operations of a step of Pair-DPO, and the memory that stays in use between steps.
//!
//! Captions and images of a micro batch are two graphs, which both exist when the backward pass begins; it starts with the
//! images. So there are two peaks: at the end of all forward passes, and when the images' part of the backward pass is
//! done, all weights have gradients and the captions' part is left.

use hermesflow_nn::ops::Products;
use hermesflow_nn::parallel;

use super::{BEFORE, F32, Sizes};
use crate::cost::{Costs, TrainingCost, TrainingWork};

impl Sizes {
    /// The cost of a step.
    pub(super) fn step(&self, work: &TrainingWork) -> TrainingCost {
        let tokens = self.config.image_tokens;
        let captions = (work.pairs * (BEFORE + tokens + 20 + 2 * work.words)) as u64;
        let passes = if work.guided { 2 } else { 1 };
        let images = (work.pairs * passes * (work.words + 2 * tokens)) as u64;
        let (said, drawn) = (2 * work.pairs * work.words, 2 * work.pairs * tokens);
        let forward = (captions + images) as f64 * self.row(tokens as f64 / 2.0)
            + said as f64 * self.text_head()
            + (drawn * passes) as f64 * self.code_head();
        let weights = self.trained() * F32;
        let passing = self.passing(work, [captions, images], [said as u64, drawn as u64]);
        // One for the forward pass, two for the backward pass, one for the reference; with recomputation, most of a
        // block's products again.
        let passes = if work.recompute { 4.9 } else { 4.0 };
        TrainingCost::new(work, self.gpu, weights, passing, passes * forward)
    }

    /// Bytes at the peak of a micro batch with `rows` tokens and `labels` labels, each of captions and of images.
    fn passing(&self, work: &TrainingWork, rows: [u64; 2], labels: [u64; 2]) -> u64 {
        let (hidden, mlp, keys, blocks) = (self.hidden(), self.mlp(), self.keys(), self.blocks());
        let weights = self.trained() * F32;
        let [captions, images] = rows;
        let vocabulary = self.config.language.vocab_size as u64;
        let codes = self.config.gen_head.codes as u64;
        let logits = labels[0] * (vocabulary + hidden) * F32 + labels[1] * (codes + 2 * hidden) * F32;
        // The smallest models, and any on a GPU, run operator by operator: each result stays with the graph.
        let small = work.products == Products::F32 && (self.parameters() as usize) < parallel::SMALL;
        if small || self.gpu {
            let kept = (9 * hidden + 4 * keys + 4 * mlp) * F32;
            return weights + (captions + images) * (blocks * kept + 3 * hidden * F32) + 3 * logits;
        }
        // Queries, keys and values of every query head, attention's output, what stands between, gate and up.
        let saved = (5 * hidden + 2 * mlp) * F32;
        let inner = if work.recompute { 0 } else { saved };
        let back = (3 * mlp + 2 * hidden).max(9 * hidden) * F32 + if work.recompute { saved } else { 0 };
        let reference = (6 * hidden + 3 * mlp) * F32;
        let outputs = (captions + images) * (blocks * hidden + 3 * hidden) * F32;
        let table = vocabulary * hidden * F32;
        let between = (images * back).max(images * reference).max(table);
        let first = outputs + (captions + images) * blocks * inner + logits + between;
        let second = weights + outputs + captions * blocks * inner + labels[0] * vocabulary * F32 + captions * back;
        first.max(second)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::published;
    use super::*;
    use candle_core::DType;

    const GIGABYTE: u64 = 1_000_000_000;

    #[test]
    fn the_published_size_by_hand_and_each_saving_saves() {
        let sizes = published(false);
        let work = TrainingWork {
            pairs: 4,
            words: 30,
            masks: 1,
            guided: false,
            accumulation: 1,
            products: Products::Bf16,
            recompute: false,
            host_state: false,
        };
        let whole = sizes.train(&work);
        // 24 blocks of 4·2048² + 3·2048·5632, table and head of 102,400, hand: about 1.69 G, with two moments.
        assert!((whole.held as f64 / (3.0 * 4.0 * 1.69e9) - 1.0).abs() < 0.02, "{}", whole.held);
        // 4 × (60 + 576 + 20 + 60) and 4 × (30 + 1152) rows; each keeps in each block about 4 · (6 · 2048 + 2 · 5632).
        let rows = 4 * (60 + 576 + 20 + 60) + 4 * (30 + 2 * 576);
        let graphs = rows * 24 * 4 * (6 * 2048 + 2 * 5632);
        assert!(whole.passing > graphs && whole.passing < graphs + 6 * GIGABYTE, "{} {graphs}", whole.passing);
        let again = sizes.train(&TrainingWork { recompute: true, ..work });
        assert!(again.passing < whole.passing && again.operations > whole.operations);
        assert!(sizes.train(&TrainingWork { guided: true, ..work }).operations > 1.4 * whole.operations);
        let gpu = Box::new(sizes).on_gpu(DType::BF16);
        let host = gpu.train(&TrainingWork { host_state: true, ..work });
        assert!(host.held < whole.held && host.host > 0);
    }
}
