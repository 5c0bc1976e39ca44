//! The memory and operations of a step of Pair-DPO, and the memory that stays in use between steps.
//!
//! Captions and images of a micro batch are two graphs, which both exist when the backward pass begins; it starts with the
//! images. So there are two peaks: at the end of all forward passes, and when the images' part of the backward pass is
//! done, all weights have gradients and the captions' part is left.

use std::collections::BTreeSet;

use hermesflow_nn::ops::Products;
use hermesflow_nn::parallel;

use super::super::llama;
use super::{BEFORE, F32, Parameter, Sizes};
use crate::cost::{Costs, TrainingCost, TrainingWork};

/// What the name of the table of words begins with.
const WORDS: &str = "language_model.model.embed_tokens.";

/// How many blocks a step's gradients go through, on the side of captions and on that of images, and how many of them are
/// trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Graph {
    captions: u64,
    images: u64,
    trained: u64,
}

impl Sizes {
    /// The cost of a step.
    pub(super) fn step(&self, work: &TrainingWork) -> TrainingCost {
        let tokens = self.config.image_tokens;
        let captions = (work.pairs * (BEFORE + tokens + 20 + 2 * work.words)) as u64;
        let passes = if work.guided { 2 } else { 1 };
        let images = (work.pairs * passes * (work.words + 2 * tokens)) as u64;
        let (said, drawn) = (2 * work.pairs * work.words, 2 * work.pairs * tokens);
        let graph = self.graph(work.parts);
        let blocks = self.blocks() as f64;
        // One for the forward pass, one for the reference; one for the inputs' gradients and one for the weights'; with
        // recomputation, most of a block's products again.
        let again = if work.recompute { 1.9 } else { 1.0 };
        let times = |side: u64| 2.0 + (again * side as f64 + graph.trained.min(side) as f64) / blocks;
        let row = self.row(tokens as f64 / 2.0);
        let heads = said as f64 * self.text_head() + (drawn * passes) as f64 * self.code_head();
        let operations =
            (captions as f64 * times(graph.captions) + images as f64 * times(graph.images)) * row + 4.0 * heads;
        let passing = self.passing(work, &graph, [captions, images], [said as u64, drawn as u64]);
        // The largest tensor is copied to be written, and read through its file when the finished model is opened.
        let largest = self.parameters.iter().map(|parameter| parameter.bytes(work.products.dtype())).max().unwrap_or(0);
        let saving = if self.gpu { 0 } else { 2 * largest };
        TrainingCost {
            saving,
            ..TrainingCost::new(work, self.gpu, self.trained(work.parts) * F32, passing, operations)
        }
    }

    /// The blocks that gradients go through where some parts are trained.
    fn graph(&self, parts: &[String]) -> Graph {
        let names: Vec<&str> = self.of(parts).map(|parameter| parameter.name.as_str()).collect();
        let number = |name: &&str| -> Option<u64> {
            name.strip_prefix(llama::ROOT)?.strip_prefix(".model.layers.")?.split('.').next()?.parse().ok()
        };
        let trained: BTreeSet<u64> = names.iter().filter_map(number).collect();
        let lowest = trained.first().copied().unwrap_or(self.blocks());
        // Gradients go down to what is trained below all blocks, or to the lowest block that is.
        let blocks = |below: [&str; 3]| {
            let first =
                if names.iter().any(|name| below.iter().any(|part| name.starts_with(part))) { 0 } else { lowest };
            self.blocks() - first
        };
        Graph {
            captions: blocks([WORDS, "aligner.", "aligner."]),
            images: blocks([WORDS, "gen_embed.", "gen_aligner."]),
            trained: trained.len() as u64,
        }
    }

    /// Bytes at the peak of a micro batch with `rows` tokens and `labels` labels, each of captions and of images.
    fn passing(&self, work: &TrainingWork, graph: &Graph, rows: [u64; 2], labels: [u64; 2]) -> u64 {
        let (hidden, mlp, keys) = (self.hidden(), self.mlp(), self.keys());
        let weights = self.trained(work.parts) * F32;
        let [captions, images] = rows;
        let vocabulary = self.config.language.vocab_size as u64;
        let codes = self.config.gen_head.codes as u64;
        let logits = labels[0] * (vocabulary + hidden) * F32 + labels[1] * (codes + 2 * hidden) * F32;
        // The smallest models, and any on a GPU, run operator by operator: each result stays with the graph.
        let small = work.products == Products::F32 && (self.parameters() as usize) < parallel::SMALL;
        if small || self.gpu {
            let kept = (9 * hidden + 4 * keys + 4 * mlp) * F32;
            let blocks = captions * graph.captions + images * graph.images;
            return weights + blocks * kept + (captions + images) * 3 * hidden * F32 + 3 * logits;
        }
        // Queries, keys and values of every query head, attention's output, what stands between, gate and up.
        let saved = (5 * hidden + 2 * mlp) * F32;
        let inner = if work.recompute { 0 } else { saved };
        let back = (3 * mlp + 2 * hidden).max(9 * hidden) * F32 + if work.recompute { saved } else { 0 };
        let reference = (6 * hidden + 3 * mlp) * F32;
        let outputs = (captions * (graph.captions + 3) + images * (graph.images + 3)) * hidden * F32;
        // The backward pass begins with the head over the codes.
        let is_head = |parameter: &Parameter| parameter.name.starts_with("gen_head.");
        let head: u64 = self.of(work.parts).filter(|own| is_head(own)).map(|own| own.count * F32).sum();
        let between = (images * back).max(images * reference).max(head);
        let first = outputs + (captions * graph.captions + images * graph.images) * inner + logits + between;
        let second =
            weights + outputs + captions * graph.captions * inner + labels[0] * vocabulary * F32 + captions * back;
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
        let work = TrainingWork::of_four_pairs(30);
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

    #[test]
    fn what_is_not_trained_below_needs_no_graph() {
        let sizes = published(false);
        let graph = |parts: &[&str]| sizes.graph(&parts.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(graph(&[]), Graph { captions: 24, images: 24, trained: 24 });
        assert_eq!(graph(&["language_model."]), Graph { captions: 24, images: 24, trained: 24 });
        let last = ["language_model.model.layers.22.", "language_model.model.layers.23."];
        assert_eq!(graph(&last), Graph { captions: 2, images: 2, trained: 2 });
        // A block between is not trained, but gradients go through it.
        let apart = ["language_model.model.layers.2.", "language_model.model.layers.23."];
        assert_eq!(graph(&apart), Graph { captions: 22, images: 22, trained: 2 });
        assert_eq!(graph(&["gen_aligner."]), Graph { captions: 0, images: 24, trained: 0 });
        assert_eq!(graph(&["gen_head."]), Graph { captions: 0, images: 0, trained: 0 });
    }
}
