//! What each saving of work is worth alone: the same work with and without it, in turns, medians of five.
//!
//! `cargo run --release -p hermesflow-models --example savings -- FOLDER`, where FOLDER holds showo/, vq/ and
//! tokenizer.json, as `hermesflow random-model` writes them.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use hermesflow_models::showo::reply::draw;
use hermesflow_models::showo::sequence::Packed;
use hermesflow_models::showo::{Phi, Showo};
use hermesflow_models::{
    CaptionExample, DType, Device, FileBacked, ImageExample, ImageView, ImagineJob, ImagineOptions, MaskedOptions,
    PairModel, Products, ReplyRequest, Sampling, Scored, UnifiedModel,
};
use hermesflow_nn::gradients;
use image::RgbImage;
use mimalloc::MiMalloc;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The allocator of the program itself.
#[global_allocator]
static ALLOCATOR: FileBacked<MiMalloc> = FileBacked(MiMalloc);

type Done = Result<(), Box<dyn std::error::Error>>;

const ROUNDS: usize = 5;
const TOKENS: usize = 8;
/// The original pads the text of every sequence to so many tokens.
const TEXT: usize = 129;
const QUESTION: &str = "Give a caption for this image.";
const PROMPT: &str = "a large red circle above three small blue squares on a grey background";
const OTHER: &str = " two green triangles left of a small yellow cross";

fn main() -> Done {
    let folder = std::env::args().nth(1).ok_or("give the folder of a model")?;
    let folder = Path::new(&folder);
    let tokenizer = folder.join("tokenizer.json");
    let model = Showo::load(&folder.join("showo"), &folder.join("vq"), &tokenizer, DType::F32, &Device::Cpu)?;
    let phi = Phi::new(model.weights(), model.config(), model.phi_config())?;
    let (tokens, codebook) = (model.image_tokens() as u32, model.config().codebook_size as u32);
    let codes: Vec<Vec<u32>> =
        (0..8).map(|image| (0..tokens).map(|at| (at * 7919 + image * 104_729) % codebook).collect()).collect();
    let (text, offset) = (model.tokenizer().encode(PROMPT)?, model.config().image_offset());

    println!("{:<62} {:>9} {:>9} {:>7}", "", "without", "with", "");
    replies(&model, &phi, &codes, &text)?;
    images(&model, &phi, &text, offset)?;
    training(&model, &phi, &codes, &text)
}

/// Medians of both, in turns, as a line.
fn compare(what: &str, mut without: impl FnMut() -> Done, mut with: impl FnMut() -> Done) -> Done {
    without()?;
    with()?;
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        let started = Instant::now();
        without()?;
        times[0].push(started.elapsed().as_secs_f64());
        let started = Instant::now();
        with()?;
        times[1].push(started.elapsed().as_secs_f64());
    }
    let [without, with] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    });
    println!("{what:<62} {without:>7.3} s {with:>7.3} s {:>6.1}×", without / with);
    Ok(())
}

fn request(seed: u64, max_new_tokens: usize) -> ReplyRequest {
    let sampling = Sampling { top_k: 4, temperature: 2.0 };
    ReplyRequest { question: QUESTION.into(), sampling, seed, max_new_tokens }
}

/// `<|mmu|> <|soi|> image <|eoi|>` and a causal text behind it.
fn understanding(packed: &mut Packed, model: &Showo, codes: &[u32], text: &[u32]) -> std::ops::Range<usize> {
    let frames = hermesflow_models::showo::Frames::new(model.config(), model.tokenizer().special);
    let block = packed.push(&frames.understanding_image(codes), 0, vec![], false);
    packed.push(text, block.len(), vec![block], true)
}

fn forward(phi: &Phi, packed: &Packed) -> Result<hermesflow_models::Tensor, Box<dyn std::error::Error>> {
    Ok(phi.forward(phi.embed(&packed.ids)?, &packed.positions, &packed.segments(), None)?)
}

fn replies(model: &Showo, phi: &Phi, codes: &[Vec<u32>], text: &[u32]) -> Done {
    let view = ImageView::Codes(codes[0].clone());
    let reply = |requests: &[ReplyRequest]| -> Done {
        black_box(model.reply(&view, requests)?);
        Ok(())
    };
    compare(
        "keys and values kept (1 caption of 8 tokens)",
        || {
            for written in 0..TOKENS {
                let mut packed = Packed::default();
                let text: Vec<u32> = text.iter().copied().cycle().take(text.len() + written).collect();
                understanding(&mut packed, model, &codes[0], &text);
                let hidden = forward(phi, &packed)?;
                black_box(phi.logits(&hidden.narrow(0, packed.ids.len() - 1, 1)?, None)?);
            }
            Ok(())
        },
        || reply(&[request(0, TOKENS)]),
    )?;
    let ten: Vec<_> = (0..10).map(|seed| request(seed, TOKENS)).collect();
    compare(
        "replies share image and question, advance together (10)",
        || ten.iter().try_for_each(|one| reply(std::slice::from_ref(one))),
        || reply(&ten),
    )?;
    let views: Vec<ImageView> = codes[..4].iter().cloned().map(ImageView::Codes).collect();
    let all: Vec<(&ImageView, &[ReplyRequest])> = views.iter().map(|view| (view, &ten[..8])).collect();
    compare(
        "replies about several images advance together (4 × 8)",
        || {
            all.iter().try_for_each(|one| {
                black_box(model.reply_many(std::slice::from_ref(one))?);
                Ok(())
            })
        },
        || {
            black_box(model.reply_many(&all)?);
            Ok(())
        },
    )?;
    let rows = phi.logits(&phi.embed(&[text[0]; 10])?, None)?.to_vec2::<f32>()?;
    let sampling = Sampling { top_k: 4, temperature: 2.0 };
    let [mut first, mut second] = [0, 1].map(ChaCha8Rng::seed_from_u64);
    compare(
        "the likeliest 4 found without a sort of the vocabulary (10)",
        || {
            for logits in &rows {
                let mut all: Vec<u32> = (0..logits.len() as u32).collect();
                all.sort_unstable_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
                let few: Vec<f32> = all[..4].iter().map(|&token| logits[token as usize]).collect();
                black_box(draw(&few, sampling, &mut first));
            }
            Ok(())
        },
        || {
            for logits in &rows {
                black_box(draw(logits, sampling, &mut second));
            }
            Ok(())
        },
    )?;
    let side = model.resolution() as u32;
    let picture = [RgbImage::from_fn(side, side, |x, y| image::Rgb([(x ^ y) as u8, x as u8, y as u8]))];
    let encode = || -> Done {
        black_box(model.encode_images(&picture)?);
        Ok(())
    };
    compare("a picture's codes kept (8 questions in turn)", || (0..8).try_for_each(|_| encode()), encode)
}

fn images(model: &Showo, phi: &Phi, text: &[u32], offset: u32) -> Done {
    let frames = hermesflow_models::showo::Frames::new(model.config(), model.tokenizer().special);
    let (tokens, steps, count) = (model.image_tokens(), 4, 4);
    let imagine = |prompt: &str, guidance: f64| -> Done {
        let job = |seed| ImagineJob { prompt: prompt.into(), seed, known: vec![] };
        let options = ImagineOptions::from(MaskedOptions { steps, guidance, ..MaskedOptions::default() });
        black_box(model.imagine(&(0..count).map(job).collect::<Vec<_>>(), &options)?);
        Ok(())
    };
    compare(
        "both branches of guidance in one batch (4 images, 4 steps)",
        || imagine(PROMPT, 0.0).and_then(|()| imagine("", 0.0)),
        || imagine(PROMPT, 5.0),
    )?;
    let long = [text, text, text, text, text].concat();
    let pass = |text: &[u32]| -> Done {
        let mut packed = Packed::default();
        let text = packed.push(&frames.imagine_text(text), 0, vec![], true);
        packed.push(&frames.imagine_image((0..tokens).map(|_| None)), text.len(), vec![text], false);
        black_box(forward(phi, &packed)?);
        Ok(())
    };
    let frozen = phi.cache(frames.imagine_text(&long).len())?;
    compare(
        "the text's keys and values kept (a step, 70 words)",
        || pass(&long),
        || {
            let rows = frames.imagine_text(&long).len();
            let mut packed = Packed::default();
            packed.push(&frames.imagine_image((0..tokens).map(|_| None)), rows, vec![], false);
            let segments = packed.segments.iter().map(|segment| {
                let own = segment.own.start + rows..segment.own.end + rows;
                hermesflow_nn::ops::Segment { own, ..segment.clone() }.seeing(0..rows)
            });
            let placement = hermesflow_models::showo::phi::Placement::Behind;
            let xs = phi.embed(&packed.ids)?;
            black_box(phi.forward(xs, &packed.positions, &segments.collect(), Some((&frozen, &placement)))?);
            Ok(())
        },
    )?;
    let rows = phi.embed(&vec![offset; TEXT + tokens + 2])?;
    let masked = rows.narrow(0, 0, tokens * 64 / 100)?;
    let columns = offset as usize..offset as usize + model.config().codebook_size;
    compare(
        "the head over codes at masked positions (64 %)",
        || {
            black_box(phi.logits(&rows, None)?);
            Ok(())
        },
        || {
            black_box(phi.logits(&masked, Some(columns.clone()))?);
            Ok(())
        },
    )
}

fn training(model: &Showo, phi: &Phi, codes: &[Vec<u32>], text: &[u32]) -> Done {
    let padded: Vec<u32> = text.iter().copied().cycle().take(TEXT).collect();
    let sequences = |text: &[u32]| -> Done {
        let mut packed = Packed::default();
        for codes in codes {
            understanding(&mut packed, model, codes, text);
        }
        black_box(forward(phi, &packed)?);
        Ok(())
    };
    compare("texts without padding (8 sequences, forward)", || sequences(&padded), || sequences(text))?;

    let (policy, reference) = (model.trainable()?.training(Products::F32)?, model.frozen()?.training(Products::F32)?);
    let caption = |image: &[u32], caption: &str| CaptionExample {
        image: ImageView::Codes(image.to_vec()),
        question: QUESTION.into(),
        caption: caption.into(),
    };
    let win_lose: Vec<_> =
        codes[..4].iter().flat_map(|codes| [caption(codes, PROMPT), caption(codes, OTHER)]).collect();
    let (wins, losses): (Vec<_>, Vec<_>) = win_lose.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).unzip();
    let trained = |examples: &[CaptionExample]| -> Done {
        black_box(gradients::backward(&policy.caption_log_probs(examples)?.sum_all()?)?);
        Ok(())
    };
    compare(
        "caption pairs share image and question (4, with gradients)",
        || trained(&wins).and_then(|()| trained(&losses)),
        || trained(&win_lose),
    )?;
    compare(
        "the reference's captions remembered (4 pairs)",
        || {
            black_box(reference.caption_log_probs(&win_lose)?);
            trained(&win_lose)
        },
        || trained(&win_lose),
    )?;
    let masked: Vec<u32> = (0..codes[0].len() as u32).filter(|at| at % 25 < 16).collect();
    let image = |image: &Vec<u32>| ImageExample {
        prompt: PROMPT.into(),
        unconditional: false,
        codes: image.clone(),
        scored: Scored::Masked(masked.clone()),
    };
    let images: Vec<_> = codes.iter().map(image).collect();
    compare(
        "image pairs share their text (4, with gradients)",
        || {
            images.iter().try_for_each(|image| {
                let log_probs = policy.image_log_probs(std::slice::from_ref(image), 0.0)?;
                black_box(gradients::backward(&log_probs.sum_all()?)?);
                Ok(())
            })
        },
        || {
            black_box(gradients::backward(&policy.image_log_probs(&images, 0.0)?.sum_all()?)?);
            Ok(())
        },
    )?;
    compare(
        "the reference without a graph (4 image pairs)",
        || {
            black_box(policy.image_log_probs(&images, 0.0)?);
            Ok(())
        },
        || {
            black_box(reference.image_log_probs(&images, 0.0)?);
            Ok(())
        },
    )
}
