//! What is counted of Janus-Pro's memory before it is loaded, against the most that its tensors take.
//!
//! One test alone in its program, whose allocator counts.
#![allow(clippy::unwrap_used, missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use hermesflow_models::cost::{Costs, TrainingWork};
use hermesflow_models::janus::config::JanusConfig;
use hermesflow_models::janus::conversation::SYSTEM;
use hermesflow_models::janus::cost::Sizes;
use hermesflow_models::janus::pretrain::{config_around, files, random_janus, tokenizer};
use hermesflow_models::janus::{Janus, TRAINED};
use hermesflow_models::model::PairModel;
use hermesflow_models::{
    CaptionExample, Device, ImageExample, ImageView, ImagineJob, ImagineOptions, NextCodeOptions, Products,
    ReplyRequest, Sampling, Scored, Tensor, UnifiedModel,
};
use hermesflow_nn::gradients;
use image::RgbImage;
use serde_json::json;

/// Bytes that are allocated now, and at most since [`peak`] began.
static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every allocation is the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: by the contract of this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: by the contract of this function.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that some work takes at a time beside what is there before it.
fn peak<T>(work: impl FnOnce() -> T) -> u64 {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    drop(work());
    (MOST.load(Ordering::Relaxed) - before) as u64
}

/// Large enough not to be divided among threads, with the published vocabulary and 144 tokens a picture.
fn model() -> Janus {
    let language = json!({
        "vocab_size": 102_400, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6,
        "num_attention_heads": 4, "max_position_embeddings": 2048, "model_type": "llama",
    });
    let mut config = config_around(language, 256);
    config["aligner_config"]["params"]["input_dim"] = json!(96);
    let eyes = &mut config["vision_config"]["params"];
    for (key, value) in [("image_size", 192), ("patch_size", 16), ("width", 96), ("layers", 2), ("heads", 4)] {
        eyes[key] = json!(value);
    }
    eyes["mlp_ratio"] = json!(4.0);
    let hand = &mut config["gen_vision_config"]["params"];
    hand["ch"] = json!(64);
    hand["z_channels"] = json!(64);
    hand["num_res_blocks"] = json!(1);
    // A tokenizer that knows the words of its texts, as the published one does.
    let line = |i: usize| format!("a large red circle above {i} small blue squares. what is this? {SYSTEM}");
    let (tokenizer, _) = tokenizer(&(0..200).map(line).collect::<Vec<_>>(), 700).unwrap();
    let files = files(&config, 144, 192, &tokenizer);
    let config = JanusConfig::read(&files).unwrap();
    Janus::new(files, random_janus(&config, 7, &Device::Cpu).unwrap()).unwrap()
}

/// What a step of training takes, with a reference: its graphs, its gradients and what comes and goes.
fn step(model: &Janus, parts: &[String], view: &ImageView, pairs: usize) -> u64 {
    let products = Products::F32;
    let reference = model.frozen().unwrap().training(products).unwrap();
    let policy = match parts {
        [] => reference.trainable(&TRAINED),
        parts => reference.trainable(parts),
    };
    let policy = policy.unwrap().training(products).unwrap();
    let captions = |number: usize| {
        let image = view_of(view, number);
        CAPTIONS.map(|caption| CaptionExample {
            image: image.clone(),
            question: "what is this?".into(),
            caption: format!("{caption} {number}"),
        })
    };
    let images = |number: usize| {
        [0, 1].map(|side: u32| ImageExample {
            prompt: "a large red circle above small blue squares".into(),
            unconditional: false,
            codes: (0..144).map(|at| (at * 97 + side * 31 + number as u32 * 7) % 16_384).collect(),
            scored: Scored::All,
        })
    };
    let captions: Vec<CaptionExample> = (0..pairs).flat_map(captions).collect();
    let images: Vec<ImageExample> = (0..pairs).flat_map(images).collect();
    let sum = |scores: Tensor| scores.sum_all().unwrap();
    peak(|| {
        let said = sum(policy.caption_log_probs(&captions).unwrap());
        let made = sum(policy.image_log_probs(&images, 0.0).unwrap());
        let known = sum(reference.image_log_probs(&images, 0.0).unwrap()).detach();
        let loss = ((said + made).unwrap() - known).unwrap();
        gradients::backward(&loss).unwrap()
    })
}

const CAPTIONS: [&str; 2] =
    ["a large red circle above small blue squares", "small blue squares above a large red circle"];

/// Pictures as a stage makes them.
fn pictures(model: &Janus, jobs: &[ImagineJob], options: &ImagineOptions) -> Vec<RgbImage> {
    model.decode_images(&model.imagine(jobs, options).unwrap()).unwrap()
}

/// A picture of its own for each pair.
fn view_of(view: &ImageView, number: usize) -> ImageView {
    match view {
        ImageView::Codes(codes) => ImageView::Codes(codes.clone()),
        ImageView::Features(features) => ImageView::Features(features.affine(1.0, number as f64 * 0.01).unwrap()),
    }
}

#[test]
fn what_is_counted_is_what_is_allocated_within_15_percent() {
    let model = model();
    let sizes = Sizes::new(model.config()).unwrap();
    let picture = RgbImage::from_fn(200, 160, |x, y| image::Rgb([x as u8, y as u8, (x ^ y) as u8]));
    let view = model.understand(&[model.prepare(picture).unwrap()]).unwrap().remove(0);
    let request = |number| ReplyRequest {
        question: "what is this?".into(),
        sampling: Sampling { top_k: 0, temperature: 1.0 },
        seed: number,
        max_new_tokens: 40,
    };
    let requests: Vec<ReplyRequest> = (0..10).map(request).collect();
    let prompt = || "a large red circle above small blue squares".to_owned();
    let jobs: Vec<ImagineJob> = (0..8).map(|seed| ImagineJob { prompt: prompt(), seed, known: vec![] }).collect();
    let options = NextCodeOptions::default();
    let options: ImagineOptions = options.into();
    let words = model.conversation().prompt(&prompt()).unwrap().len();
    // The longer of a pair's captions.
    let caption = format!("{} 0", CAPTIONS[1]);
    let said = model.conversation().reply(&caption).unwrap().len();
    let asked = model.conversation().ask("what is this?").unwrap();
    let (before, behind) = (asked.before.len(), asked.behind.len());
    println!("{words} tokens a prompt, {said} a caption, {before} before a picture, {behind} a question");
    let work = |parts, pairs| TrainingWork {
        parts,
        pairs,
        words: said,
        masks: 1,
        guided: false,
        accumulation: 1,
        products: Products::F32,
        recompute: false,
        host_state: false,
    };
    let last = ["language_model.model.layers.4.".to_owned(), "language_model.model.layers.5.".to_owned()];
    let language = ["language_model.".to_owned()];
    let mut wrong = Vec::new();
    for (what, counted, taken) in [
        ("captions", sizes.reply(1, 1, 10, 20, 40).bytes, peak(|| model.reply(&view, &requests).unwrap())),
        ("pictures", sizes.imagine(8, words, &options).bytes, peak(|| pictures(&model, &jobs, &options))),
        ("a step", sizes.train(&work(&[], 2)).passing, step(&model, &[], &view, 2)),
        ("a step of the language model", sizes.train(&work(&language, 4)).passing, step(&model, &language, &view, 4)),
        ("a step of two blocks", sizes.train(&work(&last, 4)).passing, step(&model, &last, &view, 4)),
    ] {
        let ratio = counted as f64 / taken as f64;
        println!("{what}: {:.1} MB counted, {:.1} MB taken, {ratio:.2}", counted as f64 / 1e6, taken as f64 / 1e6);
        if (ratio - 1.0).abs() > 0.15 {
            wrong.push(what);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
