//! Properties of a small Janus-Pro: batches equal their rows, caches equal full passes, every trained parameter receives a
//! gradient and no other does.
#![allow(clippy::unwrap_used, missing_docs)]

use hermesflow_models::cost::TrainedSides;
use hermesflow_models::janus::imagine::DrawJob;
use hermesflow_models::janus::{AboutPicture, DrawOptions, Drawing, Janus, OfCodes, TRAINED};
use hermesflow_models::{
    DType, Device, FileFormat, ImageView, ImagineJob, ImagineOptions, NextCodeOptions, Products, ReplyRequest,
    Sampling, Tensor, UnifiedModel, Weights,
};
use hermesflow_nn::gradients;
use image::RgbImage;

mod tiny;

use tiny::{CODES, SIDE, TOKENS, codes, model, read};

fn picture(seed: u32, width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 17 + seed * 40) as u8, (y * 23 + seed * 7) as u8, ((x * y + seed) % 256) as u8])
    })
}

fn near(ours: &[f32], theirs: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), theirs.len());
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst <= tolerance, "{worst}: {ours:?} against {theirs:?}");
}

fn captions(features: &[Tensor]) -> Vec<AboutPicture<'_>> {
    let about = |picture: usize, question, reply| AboutPicture { features: &features[picture], question, reply };
    vec![
        about(0, "what is this?", "a large red circle"),
        about(0, "what is this?", "small blue squares"),
        about(0, "how many?", "7"),
        about(1, "what is this?", ""),
        about(1, "how many?", "a circle above squares"),
    ]
}

fn pictures(codes: &[Vec<u32>; 3]) -> Vec<OfCodes<'_>> {
    let of = |codes, prompt, unconditional| OfCodes { prompt, unconditional, codes };
    vec![
        of(&codes[0], "a large red circle", false),
        of(&codes[1], "a large red circle", false),
        of(&codes[1], "small blue squares", true),
        of(&codes[2], "", false),
        of(&codes[2], "small blue squares above", false),
    ]
}

#[test]
fn a_batch_of_log_probabilities_equals_its_rows() {
    let all = [codes(0), codes(1), codes(2)];
    for key_heads in [4, 2, 1] {
        let model = model(key_heads);
        let features = model.features(&[picture(1, 20, 11), picture(2, 16, 16)]).unwrap();
        let examples = captions(&features);
        let (together, counts) = model.reply_log_probs(&examples).unwrap();
        for ((example, batched), count) in examples.iter().zip(read(&together)).zip(counts) {
            let (alone, of_one) = model.reply_log_probs(std::slice::from_ref(example)).unwrap();
            near(&read(&alone), &[batched], 2e-4);
            assert_eq!(of_one, [count]);
        }
        let examples = pictures(&all);
        let together = read(&model.code_log_probs(&examples).unwrap());
        for (example, batched) in examples.iter().zip(&together) {
            near(&read(&model.code_log_probs(&[*example]).unwrap()), &[*batched], 2e-4);
        }
        assert_ne!(together[3], together[2], "an empty prompt is not the unconditional row");
    }
}

#[test]
fn every_trained_parameter_receives_a_gradient_and_no_other() {
    let all = [codes(0), codes(1), codes(2)];
    for prefixes in
        [&TRAINED[..], &["language_model.", "aligner."], &["gen_head."], &["language_model.model.layers.1."]]
    {
        let trained = model(2).trainable(prefixes).unwrap();
        let features = trained.features(&[picture(1, 20, 11), picture(2, 16, 16)]).unwrap();
        let (replies, _) = trained.reply_log_probs(&captions(&features)).unwrap();
        let of_codes = trained.code_log_probs(&pictures(&all)).unwrap();
        let loss = (replies.sum_all().unwrap() + of_codes.sum_all().unwrap()).unwrap();
        let found = gradients::backward(&loss).unwrap();
        let variables = trained.weights().variables();
        for (name, tensor) in trained.weights().tensors() {
            let named = prefixes.iter().any(|prefix| name.starts_with(prefix));
            assert_eq!(variables.iter().any(|(trained, _)| trained == name), named, "{name}");
            let gradient = found.get(tensor);
            assert_eq!(gradient.is_some(), named, "{name}");
            if let Some(gradient) = gradient {
                let size = gradient.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(size.is_finite() && size > 0.0, "{name}: {size}");
            }
        }
    }
    for refused in ["vision_model.", "gen_vision_model.", "lm_head", "", "g"] {
        let said = model(4).trainable(&[refused]).unwrap_err().to_string();
        assert!(said.contains(&format!("{refused:?}")) && said.contains("gen_head."), "{said}");
    }
}

/// What only the other side's likelihood depends on is not trained, so that every trained parameter receives a gradient.
#[test]
fn one_side_trains_what_its_likelihood_depends_on() {
    let all = [codes(0), codes(1), codes(2)];
    let parts = ["language_model.", "gen_embed.", "gen_aligner.", "gen_head.", "aligner."];
    for sides in [TrainedSides::Captions, TrainedSides::Images] {
        let trained = model(2).trainable_for(&parts, sides).unwrap();
        let loss = match sides {
            TrainedSides::Images => trained.code_log_probs(&pictures(&all)).unwrap(),
            _ => {
                let features = trained.features(&[picture(1, 20, 11), picture(2, 16, 16)]).unwrap();
                trained.reply_log_probs(&captions(&features)).unwrap().0
            }
        };
        let found = gradients::backward(&loss.sum_all().unwrap()).unwrap();
        let variables = trained.weights().variables();
        for (name, variable) in &variables {
            assert!(found.get(variable.as_tensor()).is_some(), "{sides:?}: {name}");
        }
        let trains = |part: &str| variables.iter().any(|(name, _)| name.starts_with(part));
        let images = sides == TrainedSides::Images;
        for part in ["gen_embed.", "gen_aligner.", "gen_head."] {
            assert_eq!(trains(part), images, "{part}");
        }
        for part in ["language_model.lm_head.", "aligner."] {
            assert_eq!(trains(part), !images, "{part}");
        }
        assert!(trains("language_model.model.embed_tokens.") && trains("language_model.model.norm."));
    }
    let said = model(2).trainable_for(&["gen_head."], TrainedSides::Captions).unwrap_err().to_string();
    assert!(said.contains("train.sides") && said.contains("gen_head."), "{said}");
}

/// As large models train: by whole blocks, in f32 and with operands rounded to bf16.
#[test]
fn whole_blocks_lose_no_gradient_and_little_of_any() {
    let all = [codes(0), codes(1), codes(2)];
    for prefixes in [&TRAINED[..], &["language_model.model.layers.1.", "language_model.lm_head.", "aligner."]] {
        let trained = model(2).trainable(prefixes).unwrap();
        let features = trained.features(&[picture(1, 20, 11), picture(2, 16, 16)]).unwrap();
        let losses = |model: &Janus| {
            let (replies, _) = model.reply_log_probs(&captions(&features)).unwrap();
            let of_codes = model.code_log_probs(&pictures(&all)).unwrap();
            (replies.sum_all().unwrap() + of_codes.sum_all().unwrap()).unwrap()
        };
        let exact = gradients::backward(&losses(&trained)).unwrap();
        let rounded = trained.training(Products::Bf16).unwrap();
        assert!(losses(&rounded).backward().is_err(), "a plain backward pass would lose what the blocks hold");
        for recompute in [false, true] {
            let found = gradients::backward(&losses(&rounded.recompute(recompute))).unwrap();
            for (name, variable) in trained.weights().variables() {
                let exact = exact.get(variable.as_tensor()).unwrap();
                let found = found.get(variable.as_tensor()).unwrap_or_else(|| panic!("{name} has no gradient"));
                let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
                let off = norm(&(exact - found).unwrap()) / norm(exact);
                assert!(off < 0.15, "{name}: {off} of the gradient is lost");
            }
        }
    }
}

#[test]
fn a_policy_begins_where_its_reference_stands_whatever_it_is_held_in() {
    let wide = model(2);
    let folder = tempfile::tempdir().unwrap();
    wide.save(folder.path(), FileFormat::Safetensors, None).unwrap();
    let player = Janus::load(folder.path(), DType::BF16, &Device::Cpu).unwrap();
    let all = [codes(0), codes(1), codes(2)];
    let features = player.features(&[picture(1, 20, 11), picture(2, 16, 16)]).unwrap();
    for products in [Products::F32, Products::Bf16] {
        let policy = player.trainable(&TRAINED).unwrap().training(products).unwrap();
        let reference = player.frozen().unwrap().training(products).unwrap();
        let scores = [&policy, &reference].map(|model| {
            let replies = read(&model.reply_log_probs(&captions(&features)).unwrap().0);
            (replies, read(&model.code_log_probs(&pictures(&all)).unwrap()))
        });
        assert_eq!(scores[0], scores[1], "{products:?}");
    }
    let parts = |model: &Janus| {
        let mut parts = Vec::new();
        model.each_part(|part| parts.push(part.to_vec())).unwrap();
        parts
    };
    assert_eq!(parts(&player), parts(&player.frozen().unwrap()));
    assert_ne!(parts(&player), parts(&player.training(Products::Bf16).unwrap()), "other products");
    assert_ne!(parts(&player), parts(&wide), "another type");
}

/// By small steps along a random direction, in the numbers that training sums.
#[test]
fn gradients_are_those_of_finite_differences() {
    let all = [codes(0), codes(1), codes(2)];
    let trained =
        model(2).trainable(&["language_model.", "gen_embed.", "gen_aligner.", "gen_head.", "aligner."]).unwrap();
    let features = trained.features(&[picture(1, 20, 11), picture(2, 16, 16)]).unwrap();
    let loss = || {
        let (replies, _) = trained.reply_log_probs(&captions(&features)).unwrap();
        let of_codes = trained.code_log_probs(&pictures(&all)).unwrap();
        (replies.sum_all().unwrap() + of_codes.sum_all().unwrap()).unwrap()
    };
    let found = gradients::backward(&loss()).unwrap();
    let value = || f64::from(loss().to_scalar::<f32>().unwrap());
    for name in [
        "language_model.model.layers.0.self_attn.k_proj.weight",
        "language_model.model.layers.1.mlp.gate_proj.weight",
        "language_model.model.layers.0.input_layernorm.weight",
        "language_model.model.norm.weight",
        "language_model.model.embed_tokens.weight",
        "gen_embed.weight",
        "gen_aligner.layers.2.weight",
        "gen_head.output_mlp_projector.bias",
        "aligner.layers.0.weight",
    ] {
        let (_, variable) = trained.weights().variables().into_iter().find(|(known, _)| known == name).unwrap();
        let gradient = found.get(variable.as_tensor()).unwrap().detach();
        // Along the gradient itself the difference is largest.
        let norm = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let (step, before) = (2e-2 / f64::from(norm), variable.as_detached_tensor().copy().unwrap());
        let at = |by: f64| {
            variable.set(&(&before + (&gradient * by).unwrap()).unwrap()).unwrap();
            value()
        };
        let slope = (at(step) - at(-step)) / (2.0 * step * f64::from(norm));
        variable.set(&before).unwrap();
        assert!((slope / f64::from(norm) - 1.0).abs() < 0.05, "{name}: slope {slope}, gradient {norm}");
    }
}

#[test]
fn win_equal_to_lose_is_no_difference_to_the_last_bit() {
    let model = model(4);
    let reference = model.frozen().unwrap();
    let policy = model.trainable(&TRAINED).unwrap();
    let features = model.features(&[picture(3, 9, 30)]).unwrap();
    let about = AboutPicture { features: &features[0], question: "what?", reply: "a circle" };
    let twice = [about.clone(), about];
    for (of_policy, of_reference) in
        [(policy.reply_log_probs(&twice).unwrap().0, reference.reply_log_probs(&twice).unwrap().0), {
            let codes = codes(1);
            let of = OfCodes { prompt: "a circle", unconditional: false, codes: &codes };
            (policy.code_log_probs(&[of, of]).unwrap(), reference.code_log_probs(&[of, of]).unwrap())
        }]
    {
        let (of_policy, of_reference) = (read(&of_policy), read(&of_reference));
        assert_eq!(of_policy[0], of_policy[1], "win and lose");
        assert_eq!(of_policy, of_reference, "a policy begins where its reference stands");
    }
    assert!(
        !reference
            .code_log_probs(&[OfCodes { prompt: "", unconditional: false, codes: &codes(0) }])
            .unwrap()
            .track_op()
    );
}

#[test]
fn frozen_models_follow_the_training_and_snapshots_do_not() {
    let trained = model(2).trainable(&TRAINED).unwrap();
    let (frozen, snapshot) = (trained.frozen().unwrap(), trained.snapshot().unwrap());
    let all = [codes(0), codes(1), codes(2)];
    let score = |model: &Janus| read(&model.code_log_probs(&pictures(&all)).unwrap());
    let before = score(&snapshot);
    for (_, variable) in trained.weights().variables() {
        variable.set(&(variable.as_detached_tensor() * 1.05).unwrap()).unwrap();
    }
    assert_eq!(score(&frozen), score(&trained));
    assert_eq!(score(&snapshot), before);
    assert_ne!(score(&trained), before);
}

#[test]
fn replies_of_a_batch_are_those_of_one_by_one() {
    for key_heads in [4, 2] {
        let model = model(key_heads);
        let request = |question: &str, top_k, seed| ReplyRequest {
            question: question.into(),
            sampling: Sampling { top_k, temperature: 1.0 },
            seed,
            max_new_tokens: 9,
        };
        let requests = vec![
            request("what is this?", 1, 0),
            request("what is this?", 5, 1),
            request("how many?", 0, 2),
            request("how many?", 1, 3),
        ];
        let prepared = [picture(1, 20, 11), picture(2, 16, 16)].map(|picture| model.prepare(picture).unwrap());
        let views = model.understand(&prepared).unwrap();
        let together = model.reply_many(&[(&views[0], &requests), (&views[1], &requests[..2])]).unwrap();
        for (view, replies) in views.iter().zip(&together) {
            for (request, reply) in requests.iter().zip(replies) {
                let alone = model.reply(view, std::slice::from_ref(request)).unwrap();
                assert_eq!(alone[0].text, reply.text);
                assert!((alone[0].log_prob - reply.log_prob).abs() < 2e-4, "{alone:?} {reply:?}");
            }
        }
        assert_eq!(together[1].len(), 2);
        assert!(model.reply(&ImageView::Codes(codes(0)), &requests[..1]).is_err(), "another model read it");
    }
}

/// A reply of one token is drawn from the distribution by which captions are scored.
#[test]
fn a_reply_s_probability_is_the_caption_s() {
    let model = model(4);
    let features = model.features(&[picture(1, 20, 11)]).unwrap();
    let about = AboutPicture { features: &features[0], question: "what is this?", reply: "" };
    let row = model.reply_logits(&[about]).unwrap().to_vec2::<f32>().unwrap().remove(0);
    let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
    let known: Vec<f64> = row.iter().map(|logit| f64::from(*logit) - sum.ln()).collect();
    let request = |seed| ReplyRequest {
        question: "what is this?".into(),
        sampling: Sampling { top_k: 0, temperature: 1.0 },
        seed,
        max_new_tokens: 1,
    };
    let requests: Vec<_> = (0..2000).map(request).collect();
    let replies = model.reply(&ImageView::Features(features[0].clone()), &requests).unwrap();
    let likeliest = known.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut most = 0;
    for reply in &replies {
        let off = known.iter().map(|log_prob| (log_prob - reply.log_prob).abs()).fold(f64::INFINITY, f64::min);
        assert!(off < 1e-4, "{reply:?} has the probability of no token");
        most += usize::from((reply.log_prob - likeliest).abs() < 1e-4);
    }
    let (share, expected) = (most as f64 / 2000.0, likeliest.exp());
    assert!((share - expected).abs() < 0.05, "{share} of the likeliest, {expected} expected");
}

#[test]
fn pictures_of_a_batch_are_those_of_one_by_one() {
    for key_heads in [4, 1] {
        let model = model(key_heads);
        for guidance in [1.0, 3.0] {
            let options = DrawOptions { guidance, temperature: 0.7, ..DrawOptions::default() };
            let job = |prompt, seed| DrawJob { prompt, seed };
            let jobs =
                [job("a large red circle", 1), job("a large red circle", 2), job("small squares", 3), job("", 4)];
            let together = model.draw(&jobs, &options).unwrap();
            let small = model.draw(&jobs, &DrawOptions { cache_bytes: 1, ..options }).unwrap();
            assert_eq!(small, together, "however many are made at once");
            for (job, codes) in jobs.iter().zip(&together) {
                assert_eq!(&model.draw(&[*job], &options).unwrap()[0], codes);
                assert_eq!(codes.len(), TOKENS);
            }
            assert_ne!(together[0], together[1], "other seeds, other pictures");
        }
    }
}

/// The cached steps of drawing see what one teacher-forced pass sees.
#[test]
fn cached_steps_are_one_whole_pass() {
    for key_heads in [4, 2, 1] {
        let model = model(key_heads);
        let all = [codes(0), codes(5), codes(9)];
        let prompts = ["a large red circle", "small squares", "a large red circle"];
        let ids: Vec<Vec<u32>> = prompts.iter().map(|prompt| model.conversation().prompt(prompt).unwrap()).collect();
        let mut drawing = Drawing::new(&model, &ids, true).unwrap();
        let mut steps: [Vec<Tensor>; 2] = Default::default();
        for step in 0..TOKENS {
            let (cond, uncond) = drawing.logits().unwrap();
            steps[0].push(cond);
            steps[1].push(uncond.unwrap());
            if step + 1 < TOKENS {
                drawing.advance(&all.each_ref().map(|codes| codes[step])).unwrap();
            }
        }
        assert!(drawing.advance(&[0, 0, 0]).is_err(), "a picture has no more codes");
        for (steps, unconditional) in steps.iter().zip([false, true]) {
            let cached = Tensor::stack(steps, 1).unwrap();
            let examples: Vec<OfCodes> =
                prompts.iter().zip(&all).map(|(prompt, codes)| OfCodes { prompt, unconditional, codes }).collect();
            let whole = model.code_logits(&examples).unwrap();
            near(&read(&cached), &read(&whole), 2e-4);
        }
    }
}

/// Two key heads for four query heads are four key heads, each pair of which is the same.
#[test]
fn grouped_heads_are_repeated_heads() {
    let grouped = model(2);
    let repeated = grouped.weights().tensors().iter().map(|(name, tensor)| {
        let heads = tensor.dims()[0] / 2;
        let tensor = match name.ends_with("k_proj.weight") || name.ends_with("v_proj.weight") {
            true => {
                let head = |number: usize| tensor.narrow(0, number / 2 * heads, heads).unwrap();
                Tensor::cat(&(0..4).map(head).collect::<Vec<_>>(), 0).unwrap()
            }
            false => tensor.clone(),
        };
        (name.clone(), tensor)
    });
    let repeated = Weights::from_tensors(repeated.collect::<Vec<_>>(), "repeated");
    let repeated = Janus::new(tiny::small_files(4), repeated).unwrap();
    let all = [codes(0), codes(1), codes(2)];
    let features = grouped.features(&[picture(1, 20, 11), picture(2, 16, 16)]).unwrap();
    let scores = [&grouped, &repeated].map(|model| {
        let replies = read(&model.reply_log_probs(&captions(&features)).unwrap().0);
        [replies, read(&model.code_log_probs(&pictures(&all)).unwrap())].concat()
    });
    near(&scores[0], &scores[1], 2e-4);
    let options = DrawOptions { guidance: 2.0, ..DrawOptions::default() };
    let job = DrawJob { prompt: "a large red circle", seed: 3 };
    assert_eq!(grouped.draw(&[job], &options).unwrap(), repeated.draw(&[job], &options).unwrap());
}

#[test]
fn guidance_and_temperature_are_what_they_say() {
    let model = model(4);
    let ids = [model.conversation().prompt("a large red circle").unwrap()];
    let drawing = Drawing::new(&model, &ids, true).unwrap();
    let (cond, uncond) = drawing.logits().unwrap();
    let (cond, uncond) = (read(&cond), read(&uncond.unwrap()));
    for (guidance, temperature) in [(5.0, 1.0), (1.0, 0.5), (0.0, 2.0)] {
        let options = DrawOptions { guidance, temperature, ..DrawOptions::default() };
        let logits: Vec<f64> = cond
            .iter()
            .zip(&uncond)
            .map(|(c, u)| (f64::from(*u) + guidance * f64::from(c - u)) / temperature)
            .collect();
        let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
        let expected: Vec<f32> = logits.iter().map(|logit| (logit.exp() / sum) as f32).collect();
        near(&drawing.probabilities(&options).unwrap()[0], &expected, 1e-5);
    }
    for options in [
        DrawOptions { temperature: 0.0, ..DrawOptions::default() },
        DrawOptions { guidance: f64::NAN, ..DrawOptions::default() },
    ] {
        assert!(model.draw(&[DrawJob { prompt: "", seed: 0 }], &options).is_err());
    }
}

#[test]
fn codes_become_pictures_and_pictures_codes() {
    let model = model(4);
    let pictures = model.decode_images(&[codes(0), codes(1)]).unwrap();
    assert_eq!(pictures[0].dimensions(), (SIDE as u32, SIDE as u32));
    assert_eq!(pictures[0], model.decode_images(&[codes(0)]).unwrap()[0]);
    let again = model.encode_images(&pictures).unwrap();
    assert!(again[1].len() == TOKENS && again[1].iter().all(|code| (*code as usize) < CODES));
    assert_eq!(model.encode_images(&[picture(1, 40, 20)]).unwrap()[0].len(), TOKENS, "other sizes are fitted first");
    for refused in [vec![CODES as u32; TOKENS], vec![0; TOKENS - 1], vec![0; 4]] {
        assert!(model.decode_images(&[refused]).is_err());
    }
    assert!(model.decode_grids(&[codes(0)], 2, 8).unwrap_err().to_string().contains("4×4"));
    // The vectors of the codebook are encoded as themselves, and so are they at any length.
    let vectors = model.vq().unwrap().vectors(&[(0..16).collect(), (16..32).collect()]).unwrap();
    for by in [1.0, 0.01, 30.0] {
        let found = model.vq().unwrap().quantize(&(&vectors * by).unwrap()).unwrap();
        assert_eq!(found, [(0..16).collect::<Vec<u32>>(), (16..32).collect()]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = model(4);
    let job = |prompt: &str| ImagineJob { prompt: prompt.into(), seed: 1, known: vec![] };
    let options = ImagineOptions::from(NextCodeOptions { guidance: 0.0, ..NextCodeOptions::default() });
    assert_eq!(model.imagine(&[job("a circle")], &options).unwrap()[0].len(), TOKENS);
    let known = ImagineJob { known: vec![Some(1); TOKENS], ..job("a circle") };
    assert!(model.imagine(&[known], &options).unwrap_err().to_string().contains("known codes"));
    let long = " a large red circle".repeat(600);
    assert!(model.imagine(&[job(&long)], &options).unwrap_err().to_string().contains("512 positions"));
    assert!(model.check_question(&long, 5).is_err() && model.check_question("what?", usize::MAX).is_err());
    model.check_question("what?", 100).unwrap();
    for text in ["<image_placeholder>", "what is <image_placeholder>?"] {
        assert!(model.check_question(text, 5).unwrap_err().to_string().contains("<image_placeholder>"));
        assert!(model.imagine(&[job(text)], &options).is_err());
    }
    let features = model.features(&[picture(1, 20, 11)]).unwrap();
    let about = |question, reply| AboutPicture { features: &features[0], question, reply };
    assert!(model.reply_log_probs(&[about("what?", &long)]).is_err());
    assert!(model.code_log_probs(&[OfCodes { prompt: "", unconditional: false, codes: &[0; 3] }]).is_err());
    let narrow = features[0].narrow(0, 0, 7).unwrap();
    assert!(model.reply_log_probs(&[AboutPicture { features: &narrow, question: "", reply: "" }]).is_err());
}

#[test]
fn matrices_in_bf16_change_little() {
    let wide = model(2);
    let folder = tempfile::tempdir().unwrap();
    wide.save(folder.path(), FileFormat::Safetensors, None).unwrap();
    let narrow = Janus::load(folder.path(), DType::BF16, &Device::Cpu).unwrap();
    assert_eq!(narrow.dtype(), DType::BF16);
    assert_eq!(narrow.weights().tensors()["language_model.model.norm.weight"].dtype(), DType::F32);
    let all = [codes(0), codes(1), codes(2)];
    for (wide, narrow) in read(&wide.code_log_probs(&pictures(&all)).unwrap())
        .into_iter()
        .zip(read(&narrow.code_log_probs(&pictures(&all)).unwrap()))
    {
        assert!((wide - narrow).abs() < 0.02 * wide.abs(), "{wide} {narrow}");
    }
    let pictures = [wide.decode_images(&[codes(3)]).unwrap(), narrow.decode_images(&[codes(3)]).unwrap()];
    assert_eq!(pictures[0], pictures[1], "the image tokenizer computes in f32 whatever the type");
}

#[test]
fn pictures_are_fitted_with_sides_cut_off_and_the_mean_around() {
    let model = model(4);
    let fitted = model.prepare(picture(1, 31, 16)).unwrap().pixels().clone();
    assert_eq!(fitted.dimensions(), (SIDE as u32, SIDE as u32));
    // 16 / 31 · 16 = 8.26 would be 8, but no less than 14: one row above and one below.
    assert_eq!(fitted.get_pixel(3, 0).0, [127; 3]);
    assert_ne!(fitted.get_pixel(3, 1).0, [127; 3]);
    assert_eq!(fitted.get_pixel(3, 15).0, [127; 3]);
    assert_eq!(model.prepare(fitted.clone()).unwrap().pixels(), &fitted, "what is fitted stays as it is");
    let features = |picture: &RgbImage| read(&model.features(std::slice::from_ref(picture)).unwrap()[0]);
    assert_eq!(features(&fitted), features(&picture(1, 31, 16)));
    assert!(model.prepare(RgbImage::new(0, 5)).is_err());
}
