//! Properties of the small Show-o: batches equal their rows, caches equal full passes, every trainable
//! parameter receives a gradient.
#![allow(clippy::unwrap_used, missing_docs)]

use hermesflow_models::showo::imagine::Denoiser;
use hermesflow_models::showo::maskgit::{Decoding, SeededDraws};
use hermesflow_models::showo::{Frames, Phi, Showo};
use hermesflow_models::{
    CaptionExample, DType, Device, GivenReply, ImageExample, ImageView, ImagineJob, ImagineOptions, MaskedOptions,
    PairModel, Products, ReplyRequest, Sampling, Scored, Tensor, UnifiedModel,
};
use hermesflow_nn::gradients;

mod small;

fn model() -> Showo {
    let model = small::model(2);
    // Larger weights than a fresh model has, so that differences between tokens show.
    let tensors = model.weights().tensors().iter().map(|(name, tensor)| {
        let louder =
            if name.ends_with("weight") && tensor.rank() == 2 { (tensor * 8.0).unwrap() } else { tensor.clone() };
        (name.clone(), louder)
    });
    let weights = hermesflow_nn::weights::Weights::from_tensors(tensors.collect::<Vec<_>>(), "louder");
    model.with_weights(weights).unwrap()
}

fn image(seed: u32) -> Vec<u32> {
    (0..16).map(|at| (at * 7 + seed * 11) % 32).collect()
}

fn captions() -> Vec<CaptionExample> {
    let example = |seed, question: &str, caption: &str| CaptionExample {
        image: ImageView::Codes(image(seed)),
        question: question.into(),
        caption: caption.into(),
    };
    vec![
        example(0, "what is this?", " a large red circle"),
        example(0, "what is this?", " small blue squares"),
        example(0, "how many?", " 7"),
        example(1, "what is this?", ""),
        example(2, "how many?", " a circle above squares"),
    ]
}

fn images() -> Vec<ImageExample> {
    let example = |seed, prompt: &str, masked: &[u32]| ImageExample {
        prompt: prompt.into(),
        unconditional: prompt.is_empty(),
        codes: image(seed),
        scored: Scored::Masked(masked.into()),
    };
    vec![
        example(0, "a large red circle", &[0, 5, 6]),
        example(1, "a large red circle", &[0, 5, 6]),
        example(2, "", &[15]),
        example(0, "small blue squares above a circle", &(0..16).collect::<Vec<_>>()),
    ]
}

#[test]
fn a_batch_of_log_probabilities_equals_its_rows() {
    let model = model();
    let together = model.caption_log_probs(&captions()).unwrap().to_vec1::<f32>().unwrap();
    for (example, batched) in captions().into_iter().zip(together) {
        let alone = model.caption_log_probs(&[example]).unwrap().to_vec1::<f32>().unwrap()[0];
        assert!((alone - batched).abs() < 1e-4, "{alone} {batched}");
    }
    let together = model.image_log_probs(&images(), 0.0).unwrap().to_vec1::<f32>().unwrap();
    for (example, batched) in images().into_iter().zip(together) {
        let alone = model.image_log_probs(&[example], 0.0).unwrap().to_vec1::<f32>().unwrap()[0];
        assert!((alone - batched).abs() < 1e-4, "{alone} {batched}");
    }
}

#[test]
fn every_trainable_parameter_receives_a_gradient() {
    let model = model().trainable().unwrap();
    let und = model.caption_log_probs(&captions()).unwrap().sum_all().unwrap();
    let generation = model.image_log_probs(&images(), 0.0).unwrap().sum_all().unwrap();
    for loss in [und, generation] {
        let gradients = loss.backward().unwrap();
        for (name, variable) in model.parameters() {
            let gradient = gradients.get(variable.as_tensor()).unwrap_or_else(|| panic!("{name} has no gradient"));
            let size = gradient.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(size.is_finite() && size > 0.0, "{name}: {size}");
        }
    }
}

#[test]
fn rounded_products_lose_no_gradient_and_little_of_any() {
    let model = model().trainable().unwrap();
    let rounded = model.training(Products::Bf16).unwrap();
    let losses = |model: &Showo| {
        let und = model.caption_log_probs(&captions()).unwrap().sum_all().unwrap();
        [und, model.image_log_probs(&images(), 0.0).unwrap().sum_all().unwrap()]
    };
    for loss in losses(&rounded) {
        assert!(loss.backward().is_err(), "a plain backward pass would lose what the blocks hold");
    }
    for (exact, rounded) in losses(&model).into_iter().zip(losses(&rounded)) {
        let (exact, rounded) = (gradients::backward(&exact).unwrap(), gradients::backward(&rounded).unwrap());
        for (name, variable) in model.parameters() {
            let exact = exact.get(variable.as_tensor()).unwrap();
            let rounded = rounded.get(variable.as_tensor()).unwrap_or_else(|| panic!("{name} has no gradient"));
            let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            let off = norm(&(exact - rounded).unwrap()) / norm(exact);
            assert!(off < 0.1, "{name}: {off} of the gradient is lost");
        }
    }
}

#[test]
fn a_policy_begins_where_its_reference_stands() {
    let model = model();
    let player = small::held(&model, DType::BF16);
    let policy = player.trainable().unwrap().training(Products::Bf16).unwrap();
    let reference = player.frozen().unwrap().training(Products::Bf16).unwrap();
    let read = |log_probs: Tensor| log_probs.to_vec1::<f32>().unwrap();
    let captions = [&policy, &reference].map(|model| read(model.caption_log_probs(&captions()).unwrap()));
    assert_eq!(captions[0], captions[1]);
    let drawn = [&policy, &reference].map(|model| read(model.image_log_probs(&images(), 0.0).unwrap()));
    assert_eq!(drawn[0], drawn[1]);
    let parts = |model: &Showo| {
        let mut parts = Vec::new();
        model.each_part(|part| parts.push(part.to_vec())).unwrap();
        parts
    };
    assert_eq!(parts(&reference), parts(&player.frozen().unwrap().training(Products::Bf16).unwrap()));
    assert_ne!(parts(&reference), parts(&player), "other products");
    assert_ne!(parts(&model), parts(&player), "another type");
}

#[test]
fn a_frozen_model_makes_no_graph_and_follows_the_training() {
    let trained = model().trainable().unwrap();
    let frozen = trained.frozen().unwrap();
    let copy = trained.snapshot().unwrap();
    assert!(!frozen.image_log_probs(&images(), 0.0).unwrap().track_op());
    let before = copy.image_log_probs(&images(), 0.0).unwrap().to_vec1::<f32>().unwrap();
    for (_, variable) in trained.parameters() {
        variable.set(&(variable.as_detached_tensor() * 1.05).unwrap()).unwrap();
    }
    let read = |model: &Showo| model.image_log_probs(&images(), 0.0).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(read(&frozen), read(&trained));
    assert_eq!(read(&copy), before);
    assert_ne!(read(&frozen), before);
}

#[test]
fn replies_of_a_batch_are_those_of_one_by_one() {
    let model = model();
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
    let (first, second) = (ImageView::Codes(image(0)), ImageView::Codes(image(3)));
    let together = model.reply_many(&[(&first, &requests), (&second, &requests[..2])]).unwrap();
    for (image, replies) in [(&first, &together[0]), (&second, &together[1])] {
        for (request, reply) in requests.iter().zip(replies) {
            let alone = model.reply(image, std::slice::from_ref(request)).unwrap();
            assert_eq!(alone[0].text, reply.text);
            assert!((alone[0].log_prob - reply.log_prob).abs() < 1e-4, "{alone:?} {reply:?}");
        }
    }
    assert_eq!(together[1].len(), 2);
}

/// A reply that ends at once has the probability of the empty caption.
#[test]
fn a_reply_s_probability_is_the_caption_s() {
    let model = model();
    let request = |seed| ReplyRequest {
        question: "what is this?".into(),
        sampling: Sampling { top_k: 0, temperature: 2.0 },
        seed,
        max_new_tokens: 1,
    };
    let requests: Vec<_> = (0..4000).map(request).collect();
    let example =
        CaptionExample { image: ImageView::Codes(image(0)), question: "what is this?".into(), caption: String::new() };
    let expected = f64::from(model.caption_log_probs(&[example]).unwrap().to_vec1::<f32>().unwrap()[0]);
    let replies = model.reply(&ImageView::Codes(image(0)), &requests).unwrap();
    assert!(replies.iter().any(|reply| reply.text.is_empty() && (reply.log_prob - expected).abs() < 1e-4));
    let sum: f64 = replies.iter().map(|reply| (-reply.log_prob).exp()).sum();
    assert!(replies.iter().all(|reply| reply.log_prob < 0.0) && sum > 4000.0);
}

#[test]
fn given_replies_are_as_likely_as_captions_in_training() {
    let model = model();
    let reply = |question: &str, reply: &str| GivenReply { question: question.into(), reply: reply.into() };
    let asked = [
        reply("what is this?", "a large red circle"),
        reply("what is this?", ""),
        reply("how many?", "7"),
        reply("what is this?", " small blue squares "),
    ];
    let views: Vec<ImageView> = (0..40).map(|seed| ImageView::Codes(image(seed))).collect();
    let all: Vec<(&ImageView, &[GivenReply])> = views.iter().map(|view| (view, &asked[..])).collect();
    let found = model.score_replies(&all).unwrap();
    assert_eq!(found.len(), 40);
    for (seed, found) in found.iter().enumerate() {
        let examples: Vec<CaptionExample> = asked
            .iter()
            .map(|asked| CaptionExample {
                image: ImageView::Codes(image(seed as u32)),
                question: asked.question.clone(),
                caption: asked.reply.clone(),
            })
            .collect();
        let (sums, counts) = model.reply_log_probs(&examples).unwrap();
        for ((found, sum), count) in found.iter().zip(sums.to_vec1::<f32>().unwrap()).zip(counts) {
            assert!((found.log_prob - f64::from(sum)).abs() < 1e-4 && found.tokens == count, "{found:?} {sum} {count}");
        }
    }
    assert!(model.score_replies(&[(&views[0], &[])]).unwrap()[0].is_empty());
    let wrong = ImageView::Features(Tensor::zeros((3, 8), hermesflow_models::DType::F32, &Device::Cpu).unwrap());
    assert!(model.score_replies(&[(&wrong, &asked[..])]).is_err());
    let long = [reply(&"what is this? ".repeat(900), "7")];
    assert!(model.score_replies(&[(&views[0], &long[..])]).unwrap_err().to_string().contains("positions"));
}

#[test]
fn images_of_a_batch_are_those_of_one_by_one() {
    let model = model();
    let options = ImagineOptions::from(MaskedOptions { steps: 5, guidance: 2.0, ..MaskedOptions::default() });
    let job = |prompt: &str, seed| ImagineJob { prompt: prompt.into(), seed, known: vec![] };
    let jobs = vec![job("a large red circle", 1), job("a large red circle", 2), job("small blue squares", 3)];
    let together = model.imagine(&jobs, &options).unwrap();
    for (job, codes) in jobs.iter().zip(&together) {
        assert_eq!(&model.imagine(std::slice::from_ref(job), &options).unwrap()[0], codes);
        assert_eq!(codes.len(), 16);
    }
    assert_ne!(together[0], together[1], "other seeds, other images");
}

/// Where the CPU's kernels do not run (`HERMESFLOW_CPU=plain`, a GPU), codes are drawn where the logits are: the same ones
/// as from probabilities on the host.
#[test]
fn images_are_those_of_probabilities_on_the_host() {
    let model = model();
    let phi = Phi::new(model.weights(), model.config(), model.phi_config()).unwrap();
    let frames = Frames::new(model.config(), model.tokenizer().special);
    for guidance in [0.0, 2.0] {
        let options = MaskedOptions { steps: 6, guidance, ..MaskedOptions::default() };
        let jobs: Vec<ImagineJob> =
            (0..5).map(|seed| ImagineJob { prompt: "small blue squares".into(), seed, known: vec![] }).collect();
        let ours = model.imagine(&jobs, &options.into()).unwrap();
        let text = frames.imagine_text(&model.tokenizer().encode("small blue squares").unwrap());
        let empty = frames.imagine_text(&[]);
        let uncond = (guidance != 0.0).then_some(empty.as_slice());
        let denoiser = Denoiser::new(&phi, model.config(), &frames, &[text], uncond).unwrap();
        for (job, ours) in jobs.iter().zip(&ours) {
            let mut image = [Decoding::new(16, options.steps, options.temperature)];
            let mut draws = SeededDraws::new(job.seed);
            for _ in 0..options.steps {
                let probabilities = denoiser.probabilities(&image, guidance).unwrap();
                image[0].advance(&probabilities, 32, &mut draws);
            }
            let [image] = image;
            assert_eq!(*ours, image.into_codes(), "guidance {guidance}, seed {}", job.seed);
        }
    }
}

#[test]
fn codes_become_pictures_and_pictures_codes() {
    let model = model();
    let pictures = model.decode_images(&[image(0), image(1)]).unwrap();
    assert_eq!(pictures[0].dimensions(), (16, 16));
    assert_eq!(model.encode_images(&pictures).unwrap()[1].len(), 16);
    assert!(model.decode_images(&[vec![32; 16]]).is_err(), "a code outside the codebook");
    assert!(model.decode_images(&[vec![0; 15]]).is_err(), "not a square");
}

#[test]
fn a_saved_model_loads_again_bit_for_bit() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path(), hermesflow_models::DType::F32).unwrap();
    let weights =
        hermesflow_nn::weights::Weights::load(folder.path(), hermesflow_models::DType::F32, &Device::Cpu).unwrap();
    let again = model.with_weights(weights).unwrap();
    let read = |model: &Showo| model.image_log_probs(&images(), 0.0).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(read(&again), read(&model));
    let (config, phi) = hermesflow_models::showo::read_configs(folder.path()).unwrap();
    assert_eq!((&config.vocab_size, &phi), (&model.config().vocab_size, model.phi_config()));
}

#[test]
fn known_codes_stay_and_the_others_are_made() {
    let model = model();
    let before = image(3);
    let known = |keep: fn(usize) -> bool| -> Vec<Option<u32>> {
        before.iter().enumerate().map(|(at, code)| keep(at).then_some(*code)).collect()
    };
    let job = |seed, known: Vec<Option<u32>>| ImagineJob { prompt: "a large red circle".into(), seed, known };
    let schedules = ["cosine", "linear", "pow2", "sigmoid"].map(|name| name.parse().unwrap());
    for schedule in schedules {
        let options = MaskedOptions { steps: 6, guidance: 2.0, temperature: 1.0, schedule }.into();
        // The right half, all but one, one, none; one that is wholly unknown beside them.
        let keeps: [fn(usize) -> bool; 4] = [|at| at % 4 < 2, |at| at == 5, |at| at != 5, |_| true];
        let mut jobs: Vec<ImagineJob> = (0..).zip(keeps).map(|(seed, keep)| job(seed, known(keep))).collect();
        jobs.push(job(9, vec![]));
        let images = model.imagine(&jobs, &options).unwrap();
        for (image, keep) in images.iter().zip(keeps) {
            for at in (0..16).filter(|&at| keep(at)) {
                assert_eq!(image[at], before[at], "{schedule}, position {at}");
            }
        }
        assert_eq!(images[3], before, "nothing to make");
        assert_eq!(model.imagine(&jobs[3..4], &options).unwrap()[0], before, "nor when it is alone");
        let changed = |image: &[u32]| image.iter().zip(&before).filter(|(a, b)| a != b).count();
        assert!(changed(&images[0]) >= 4, "{schedule}: {images:?}");
        let alone = ImagineJob { known: vec![None; 16], ..jobs[4].clone() };
        assert_eq!(model.imagine(&[alone], &options).unwrap()[0], images[4], "all unknown is none given");
    }
    let cosine = MaskedOptions { steps: 6, guidance: 2.0, ..MaskedOptions::default() };
    let linear = MaskedOptions { schedule: schedules[1], ..cosine };
    let draw = |options: MaskedOptions| model.imagine(&[job(9, vec![])], &options.into()).unwrap();
    assert_ne!(draw(cosine), draw(linear), "the schedule matters");
    let refused = |known| model.imagine(&[job(0, known)], &cosine.into()).unwrap_err().to_string();
    assert!(refused(vec![None; 15]).contains("16"));
    assert!(refused(vec![Some(32); 16]).contains("32"));
}

#[test]
fn control_tokens_that_a_text_spells_are_text() {
    let model = model();
    let tokenizer = model.tokenizer();
    let text = "a <|soi|> red [PAD]<|endoftext|> circle<|t2i|><|mmu|>";
    let ids = tokenizer.encode(text).unwrap();
    let controls = ["<|soi|>", "[PAD]", "<|endoftext|>", "<|t2i|>", "<|mmu|>"].map(|name| tokenizer.id(name).unwrap());
    assert!(ids.iter().all(|id| !controls.contains(id)), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    let read = tokenizer.encode_with_controls(text).unwrap();
    assert!(controls.iter().all(|id| read.contains(id)), "as the original reads it: {read:?}");
    // Nor do they end anything where they are trained: the caption is longer than what stands before the token.
    let example = |caption: &str| CaptionExample {
        image: ImageView::Codes(image(0)),
        question: "what is <|eoi|> this?".into(),
        caption: caption.into(),
    };
    let (_, counts) = model.reply_log_probs(&[example(text), example("a ")]).unwrap();
    let said = tokenizer.encode(&format!(" {text}")).unwrap();
    assert_eq!(counts[0], said.len() + 1);
    assert!(counts[0] > counts[1] + 10);
}

#[test]
fn what_does_not_fit_the_positions_is_refused_and_a_prompt_is_cut() {
    let model = model();
    let long = " a large red circle".repeat(600);
    let example = |question: &str, caption: &str| CaptionExample {
        image: ImageView::Codes(image(0)),
        question: question.into(),
        caption: caption.into(),
    };
    for (question, caption) in [("what?", long.as_str()), (long.as_str(), "a circle")] {
        let refused = model.check_caption(question, caption).unwrap_err().to_string();
        assert!(refused.contains("2048 positions") && refused.contains(" a large red circle"), "{refused}");
        assert!(refused.len() < 400, "{refused}");
        assert!(model.caption_log_probs(&[example(question, caption)]).is_err());
    }
    let codes = ImageView::Codes(image(0));
    let request = |question: &str, max_new_tokens| ReplyRequest {
        question: question.into(),
        sampling: Sampling::GREEDY,
        seed: 0,
        max_new_tokens,
    };
    for (question, tokens) in [(long.as_str(), 5), ("what?", 2048), ("what?", usize::MAX)] {
        assert!(model.check_question(question, tokens).is_err());
        assert!(model.reply(&codes, &[request(question, tokens)]).is_err());
    }
    // Many bytes are not many tokens: what fits is found by its tokens.
    let words = " large red".repeat(200);
    assert!(words.len() + 100 < 2048 || model.check_caption("what?", &words).is_ok());
    model.check_question("what?", 100).unwrap();
    model.reply(&codes, &[request("what?", 5)]).unwrap();
    assert!(model.cuts(&long).unwrap() && !model.cuts("a large red circle above 7 small blue squares").unwrap());
    let options = ImagineOptions::from(MaskedOptions { steps: 2, guidance: 0.0, ..MaskedOptions::default() });
    let job = |prompt: String| ImagineJob { prompt, seed: 1, known: vec![] };
    let cut = model.imagine(&[job(long.clone()), job(format!("{long} and more"))], &options).unwrap();
    assert_eq!(cut[0], cut[1], "the end of a prompt that is too long is left out");
}

#[test]
fn pictures_need_not_be_square() {
    let model = model();
    let codes = [image(0), image(1)].concat();
    let wide = model.decode_grids(std::slice::from_ref(&codes), 4, 8).unwrap().remove(0);
    assert_eq!(wide.dimensions(), (32, 16));
    assert_eq!(model.decode_grids(std::slice::from_ref(&codes), 8, 4).unwrap()[0].dimensions(), (16, 32));
    let square = model.decode_images(&[image(0)]).unwrap().remove(0);
    assert_eq!(model.decode_grids(&[image(0)], 4, 4).unwrap()[0], square);
    assert!(model.decode_grids(&[codes], 4, 7).unwrap_err().to_string().contains("4×7"));
}
