//! The memory and operations of a step of Pair-DPO, and the memory that stays in use between steps.
//!
//! Captions and images of a micro batch are two graphs, which both exist when the backward pass begins; it starts with
//! the images. The reference computes its images while the policy's graphs exist already. So there are two peaks: at
//! the end of all forward passes, and when the images' part of the backward pass is done, all weights have gradients
//! and the captions' part is left. What a block keeps and allocates follows `ops/decoder/` (the CPU's kernels),
//! `ops/gpu/trained.rs` (a GPU with products in bf16) and `ops/decoder/any_device.rs` (a GPU in f32) of
//! `hermesflow-nn`.

use hermesflow_nn::ops::{self, Products};
use hermesflow_nn::parallel;

use super::{BF16, F32, Sizes};
use crate::cost::{TrainingCost, TrainingWork};

/// Bytes per token, and bytes for all tokens.
#[derive(Debug, Clone, Copy)]
struct Kept {
    /// What a block adds to the graph, until the step is over.
    output: u64,
    /// What a block keeps for its backward pass.
    inner: u64,
    /// What a block's backward pass allocates.
    back: u64,
    /// What a block without a graph allocates.
    reference: u64,
    /// What the head keeps of each labelled row for its backward pass.
    logits: u64,
    /// What the head allocates, for all rows.
    head: u64,
    /// What a GPU allocates whatever the number of rows: a weight as an operand, scores.
    fixed: u64,
}

impl Sizes {
    /// The cost of a step of training, and of what stays in memory around it.
    pub fn train(&self, work: &TrainingWork) -> TrainingCost {
        let block = self.showo.num_vq_tokens + 3;
        let captions = (work.pairs * (block + 20 + 2 * work.words)) as u64;
        let passes = if work.guided { 2 } else { 1 };
        let images = (work.pairs * work.masks * (work.words + 2 * passes * block)) as u64;
        let (said, drawn) = (2 * work.pairs * work.words, 2 * work.pairs * work.masks);
        // A mask can cover all positions; on average it covers about two thirds.
        let (most, usual) = (drawn * self.showo.num_vq_tokens, drawn * self.showo.num_vq_tokens * 2 / 3);
        let forward = (captions + images) as f64 * self.row(block as f64)
            + (said + usual) as f64 * self.head(self.showo.vocab_size);
        let weights = self.parameters() * F32;
        let passing = self.step(work, [captions, images], [said as u64, most as u64]);
        // One for the forward pass, two for the backward pass, one for the reference; with recomputation, all but two of
        // a block's products again.
        let passes = if work.recompute { 4.6 } else { 4.0 };
        TrainingCost::new(work, self.gpu, weights, passing, passes * forward)
    }

    /// Bytes at the peak of a micro batch with `rows` tokens and `labels` labels, each of captions and of images.
    fn step(&self, work: &TrainingWork, rows: [u64; 2], labels: [u64; 2]) -> u64 {
        let weights = self.parameters() * F32;
        if !self.gpu && work.products == Products::F32 && (self.parameters() as usize) < parallel::SMALL {
            return weights + self.by_operators(rows, labels);
        }
        let kept = self.kept(work);
        let ([captions, images], blocks) = (rows, self.blocks());
        // The residual stream between the blocks and around the last norm.
        let outputs = (captions + images) * (blocks * kept.output + 3 * self.hidden() * F32);
        let inner = |rows: u64| rows * blocks * kept.inner;
        let logits = |labels: u64| labels * (kept.logits + self.hidden() * F32);
        let head = kept.head + self.showo.vocab_size as u64 * self.hidden() * F32;
        let between = (images * kept.back).max(images * kept.reference).max(head) + kept.fixed;
        let first = outputs + inner(captions + images) + logits(labels[0] + labels[1]) + between;
        let table = if self.gpu { self.showo.vocab_size as u64 * self.hidden() * F32 } else { 0 };
        let last = captions * kept.back;
        let second = weights + table + outputs + inner(captions) + logits(labels[0]) + last + kept.fixed;
        first.max(second)
    }

    /// What a block and the head keep and allocate.
    fn kept(&self, work: &TrainingWork) -> Kept {
        let kept = match (self.gpu, work.products) {
            (false, _) => self.kept_by_kernels(),
            (true, Products::Bf16) => self.kept_by_gpu_kernels(work),
            (true, Products::F32) => self.kept_by_compositions(work),
        };
        match work.recompute {
            false => kept,
            true => Kept { inner: 0, back: kept.back + kept.inner, ..kept },
        }
    }

    fn kept_by_kernels(&self) -> Kept {
        let (hidden, mlp, heads) = (self.hidden(), self.mlp(), self.phi.num_attention_heads as u64);
        Kept {
            output: hidden * F32,
            // Queries and keys before and after norm and rotation, values, attention's output, the MLP before its activation.
            inner: (6 * hidden + mlp + heads) * F32,
            back: (2 * hidden + 2 * mlp).max(8 * hidden) * F32,
            reference: (9 * hidden + 2 * mlp) * F32,
            logits: self.showo.vocab_size as u64 * F32,
            head: 0,
            fixed: 0,
        }
    }

    fn kept_by_gpu_kernels(&self, work: &TrainingWork) -> Kept {
        let (hidden, mlp, vocabulary) = (self.hidden(), self.mlp(), self.showo.vocab_size as u64);
        let labels = 2 * work.pairs * work.masks * self.showo.num_vq_tokens;
        let rows = labels.min(ops::HEAD_ROWS_ON_A_GPU) as u64;
        // Queries and keys before their norms, attention's three operands and output, the MLP before its bias.
        let inner = (6 * hidden + mlp) * BF16 + self.phi.num_attention_heads as u64 * F32;
        Kept {
            output: hidden * F32,
            inner,
            // Two gradients of the stream and one of the norm; the activation, its gradient, and the norm.
            back: 3 * hidden * F32 + (2 * mlp + 2 * hidden) * BF16,
            // Everything that a trained block keeps, the activation, and the stream twice.
            reference: inner + mlp * BF16 + 3 * hidden * F32,
            logits: 0,
            // Logits and their gradients; a copy of the weight in bf16.
            head: rows * vocabulary * (F32 + BF16) + vocabulary * hidden * BF16,
            fixed: hidden * mlp * BF16,
        }
    }

    fn kept_by_compositions(&self, work: &TrainingWork) -> Kept {
        let (hidden, mlp, vocabulary) = (self.hidden(), self.mlp(), self.showo.vocab_size as u64);
        let operand = work.products.dtype().size_in_bytes() as u64;
        let block = (self.showo.num_vq_tokens + 3) as u64;
        let labels = 2 * work.pairs * work.masks * self.showo.num_vq_tokens;
        let rows = labels.min(ops::HEAD_ROWS_ON_A_GPU) as u64;
        let scores = self.scores(2 * (work.pairs * work.masks) as u64 * block, block + work.words as u64);
        Kept {
            output: hidden * F32,
            // Queries and keys before their norms, the MLP before its activation, and four operands of attention.
            inner: (2 * hidden + mlp) * F32 + 4 * hidden * operand,
            // The gradient of the activation is computed in eight parts.
            back: (7 * mlp + 3 * hidden) * F32 + hidden * operand,
            reference: (6 * hidden + 2 * mlp) * F32 + (4 * hidden + mlp) * operand,
            logits: 0,
            // Logits, intermediate results and gradients; a copy of the weight as an operand.
            head: 9 * rows * vocabulary * F32 / 2 + vocabulary * hidden * operand,
            fixed: hidden * mlp * operand + 5 * scores,
        }
    }

    /// Bytes that the graphs of a small model keep, which runs operator by operator: for each token and block the
    /// residual stream in three sums, the norm, queries and keys in three stages and values in one, the attention, its
    /// projection, and the MLP in three; and the logits three times.
    fn by_operators(&self, rows: [u64; 2], labels: [u64; 2]) -> u64 {
        let kept = 17 * self.hidden() + 2 * self.mlp();
        let vocabulary = self.showo.vocab_size as u64;
        (rows.iter().sum::<u64>() * self.blocks() * kept + labels.iter().sum::<u64>() * 3 * vocabulary) * F32
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::showo::{MagvitConfig, PhiConfig, ShowoConfig};
    use candle_core::DType;

    const GIGABYTE: u64 = 1_000_000_000;

    /// The sizes of the published model for images of 256² (256 tokens) or 512² pixels (1024).
    pub(in super::super) fn published(tokens: usize) -> Sizes {
        let showo = format!(
            r#"{{"_class_name": "Showo", "vocab_size": 58498, "llm_vocab_size": 50295, "codebook_size": 8192,
                "num_vq_tokens": {tokens}, "w_clip_vit": false, "llm_model_path": "microsoft/phi-1_5"}}"#
        );
        let showo: ShowoConfig = serde_json::from_str(&showo).unwrap();
        let vq: MagvitConfig = serde_json::from_str(r#"{"_class_name": "MAGVITv2"}"#).unwrap();
        Sizes::new(&showo, &PhiConfig::default(), &vq).unwrap()
    }

    fn work() -> TrainingWork<'static> {
        TrainingWork::of_four_pairs(30)
    }

    /// The bytes of training on the device, with the reference and the image tokenizer.
    fn on_the_device(sizes: &Sizes, work: &TrainingWork) -> u64 {
        let cost = sizes.train(work);
        sizes.decoder_bytes(DType::BF16) + sizes.tokenizer_bytes() + cost.held + cost.passing
    }

    #[test]
    fn the_published_size_by_hand() {
        let sizes = published(1024).on_gpu(DType::BF16);
        // 24 blocks of 4·2048² + 2·2048·8192 weights, 9·2048 + 8192 vector elements of biases and norms and 4·64 of the
        // heads' norms; table and head of 58,498 · 2048, the head's bias, the last norm.
        let block = 4 * 2048 * 2048 + 2 * 2048 * 8192 + 7 * 2048 + 8192 + 4 * 64;
        let parameters = 24 * block + 2 * 58498 * 2048 + 58498 + 2 * 2048;
        assert_eq!(sizes.parameters(), parameters);
        let cost = sizes.train(&work());
        assert_eq!((cost.held, cost.host), (3 * 4 * parameters, 0));
        // 4 × (1027 + 20 + 60) and 4 × (30 + 2 · 1027) rows; each keeps in each block its input in f32, and in bf16 queries
        // and keys, four operands and the MLP; and a sum for each of 32 heads.
        let rows = 4 * (1027 + 20 + 60) + 4 * (30 + 2 * 1027);
        let graphs = rows * 24 * (4 * (2048 + 32) + 2 * (6 * 2048 + 8192));
        assert!(cost.passing > graphs && cost.passing < graphs + 4 * GIGABYTE, "{} {graphs}", cost.passing);
    }

    #[test]
    fn the_published_size_fits_the_cards_it_should() {
        let large = published(1024).on_gpu(DType::BF16);
        let needed = on_the_device(&large, &work());
        assert!(needed < 70 * GIGABYTE, "512², 4 pairs on 80 GB: {needed}");
        let small = published(256).on_gpu(DType::BF16);
        let least = TrainingWork { recompute: true, host_state: true, ..work() };
        let needed = on_the_device(&small, &least);
        assert!(needed < 20 * GIGABYTE, "256², 4 pairs on 24 GB: {needed}");
        let host = small.train(&least).host;
        assert!(host > 17 * GIGABYTE && host < 18 * GIGABYTE, "gradients and moments: {host}");
    }

    #[test]
    fn each_saving_saves() {
        for sizes in [published(256), published(256).on_gpu(DType::BF16)] {
            let whole = sizes.train(&work());
            let again = sizes.train(&TrainingWork { recompute: true, ..work() });
            assert!(again.passing < whole.passing && again.held == whole.held);
            assert!(again.operations > whole.operations);
            let host = sizes.train(&TrainingWork { host_state: true, ..work() });
            assert_eq!(host.held < whole.held, sizes.is_on_gpu(), "on the CPU there is one memory");
            for (accumulation, sums) in [(1, 0), (2, 1), (3, 1), (4, 2), (7, 2), (8, 3)] {
                let several = sizes.train(&TrainingWork { accumulation, ..work() });
                assert_eq!(several.held, whole.held + sums * sizes.parameters() * F32);
            }
        }
    }
}
