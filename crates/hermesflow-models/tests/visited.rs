//! The likelihood of an image in the states that the sampler visited: that of what it drew there.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;

use hermesflow_models::showo::imagine::Denoiser;
use hermesflow_models::showo::maskgit::{Decoding, SeededDraws};
use hermesflow_models::showo::{Frames, Phi, Showo};
use hermesflow_models::{
    ImageExample, ImagineJob, ImagineOptions, MaskSchedule, MaskedOptions, PairModel, Scored, UnifiedModel,
};
use hermesflow_nn::gradients;

mod small;

const STEPS: usize = 5;
const CODEBOOK: usize = 32;

/// What is known of one drawing: the codes, the step in which each was drawn, and the log-probability that it had there.
struct Trace {
    codes: Vec<u32>,
    steps: Vec<u32>,
    log_probs: Vec<f64>,
}

/// Draws an image step by step, and looks at what every step drew and kept.
fn trace(model: &Showo, prompt: &str, seed: u64, options: MaskedOptions) -> Trace {
    let phi = Phi::new(model.weights(), model.config(), model.phi_config()).unwrap();
    let frames = Frames::new(model.config(), model.tokenizer().special);
    let text = frames.imagine_text(&model.tokenizer().encode(prompt).unwrap());
    let empty = frames.imagine_text(&[]);
    let without = (options.guidance != 0.0).then_some(empty.as_slice());
    let denoiser = Denoiser::new(&phi, model.config(), &frames, &[text], without).unwrap();
    let mut draws = SeededDraws::new(seed);
    let mut image = [Decoding::resume(vec![None; small::TOKENS], STEPS, options.temperature, options.schedule)];
    let mut trace = Trace { codes: vec![], steps: vec![0; small::TOKENS], log_probs: vec![0.0; small::TOKENS] };
    for step in 0..STEPS {
        let masked: Vec<usize> = image[0].masked().collect();
        let probabilities = denoiser.probabilities(&image, options.guidance).unwrap();
        image[0].advance(&probabilities, CODEBOOK, &mut draws);
        let still: BTreeSet<usize> = image[0].masked().filter(|_| step + 1 < STEPS).collect();
        let sampled = image[0].clone().into_codes();
        for (row, position) in masked.into_iter().enumerate().filter(|(_, position)| !still.contains(position)) {
            trace.steps[position] = step as u32;
            trace.log_probs[position] = f64::from(probabilities[row * CODEBOOK + sampled[position] as usize]).ln();
        }
    }
    let [image] = image;
    trace.codes = image.into_codes();
    trace
}

/// The state that was visited in a step, with what was settled in it.
fn visited(trace: &Trace, prompt: &str, step: u32) -> ImageExample {
    let at = |keep: &dyn Fn(u32) -> bool| {
        (0..small::TOKENS as u32).filter(|position| keep(trace.steps[*position as usize])).collect::<Vec<_>>()
    };
    ImageExample {
        prompt: prompt.into(),
        unconditional: false,
        codes: trace.codes.clone(),
        scored: Scored::Settled { masked: at(&|settled| settled >= step), settled: at(&|settled| settled == step) },
    }
}

#[test]
fn what_is_scored_in_a_visited_state_is_what_was_drawn_there() {
    let model = small::model(2);
    let prompts = ["a large red circle", "small blue squares above a circle"];
    for guidance in [0.0, 1.5] {
        let options = MaskedOptions { steps: STEPS, guidance, temperature: 2.0, schedule: MaskSchedule::Cosine };
        let job = |(number, prompt): (usize, &&str)| ImagineJob {
            prompt: (*prompt).into(),
            seed: 40 + number as u64,
            known: vec![],
        };
        let jobs: Vec<ImagineJob> = prompts.iter().enumerate().map(job).collect();
        let made = model.imagine_in_steps(&jobs, &ImagineOptions::Masked(options)).unwrap();
        assert_eq!(
            made.iter().map(|image| image.codes.clone()).collect::<Vec<_>>(),
            model.imagine(&jobs, &ImagineOptions::Masked(options)).unwrap()
        );
        for (job, made) in jobs.iter().zip(made) {
            let trace = trace(&model, &job.prompt, job.seed, options);
            assert_eq!((&made.codes, made.steps.as_ref()), (&trace.codes, Some(&trace.steps)));
            let steps: BTreeSet<u32> = trace.steps.iter().copied().collect();
            assert!(steps.len() >= 4 && steps.last() == Some(&(STEPS as u32 - 1)), "{steps:?}");
            let mut all = 0.0;
            for &step in &steps {
                let example = visited(&trace, &job.prompt, step);
                let ours = f64::from(model.image_log_probs(&[example], guidance).unwrap().to_vec1::<f32>().unwrap()[0]);
                let at = |log_probs: &[f64]| -> f64 {
                    let own = log_probs.iter().zip(&trace.steps).filter(|(_, settled)| **settled == step);
                    own.map(|(log_prob, _)| log_prob).sum()
                };
                let drawn = at(&trace.log_probs);
                // Without guidance the likelihood is over the whole vocabulary, and draws are among the codes.
                if guidance != 0.0 {
                    assert!((ours - drawn).abs() < 2e-3 * (1.0 + drawn.abs()), "step {step}: {ours}, drawn {drawn}");
                }
                assert!(ours < drawn + 2e-3, "step {step}: {ours}, drawn {drawn}");
                all += ours;
            }
            let once: f64 = trace.log_probs.iter().sum();
            assert!(guidance == 0.0 || (all - once).abs() < 1e-2 * once.abs(), "{all} {once}");
        }
    }
    // Where codes are given, no step is one in which all earlier ones were drawn.
    let known = (0..small::TOKENS as u32).map(|at| (at < 3).then_some(at)).collect();
    let job = ImagineJob { prompt: prompts[0].into(), seed: 1, known };
    let options = MaskedOptions { steps: STEPS, ..MaskedOptions::default() };
    assert_eq!(model.imagine_in_steps(&[job], &ImagineOptions::Masked(options)).unwrap()[0].steps, None);
}

/// The codes of a state are scored one by one, so its parts add up to the whole, with their gradients.
#[test]
fn parts_of_a_state_add_up_to_it() {
    let model = small::model(2).trainable().unwrap();
    let codes: Vec<u32> = (0..small::TOKENS as u32).map(|at| (at * 7 + 3) % 32).collect();
    let masked = vec![0u32, 2, 3, 7, 11, 15];
    let example = |scored| ImageExample {
        prompt: "a large red circle".into(),
        unconditional: false,
        codes: codes.clone(),
        scored,
    };
    let part = |settled: &[u32]| example(Scored::Settled { masked: masked.clone(), settled: settled.to_vec() });
    for guidance in [0.0, 2.0] {
        let of = |examples: &[ImageExample]| {
            let sum = model.image_log_probs(examples, guidance).unwrap().sum_all().unwrap();
            (sum.to_scalar::<f32>().unwrap(), gradients::backward(&sum).unwrap())
        };
        let (whole, whole_gradients) = of(&[example(Scored::Masked(masked.clone()))]);
        let (parts, parts_gradients) = of(&[part(&[2, 11]), part(&[0, 3, 7, 15])]);
        assert!((whole - parts).abs() < 1e-3, "{whole} {parts}");
        let mut moved = 0;
        for (name, variable) in model.parameters() {
            let read = |found: &candle_core::backprop::GradStore| {
                found.get(variable.as_tensor()).map(|found| found.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            };
            let (whole, parts) = (read(&whole_gradients).unwrap(), read(&parts_gradients).unwrap());
            let size = whole.iter().map(|value| value.abs()).fold(0.0, f32::max);
            moved += usize::from(size > 0.0);
            let apart = whole.iter().zip(&parts).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart <= 1e-3 * size + 1e-6, "{name}: {apart} of {size}");
        }
        assert!(moved > 10, "{moved} tensors");
    }
    for settled in [vec![1], vec![0, 16]] {
        let said = model.image_log_probs(&[part(&settled)], 0.0).unwrap_err().to_string();
        assert!(said.contains("is to be scored and is not masked"), "{said}");
    }
}
