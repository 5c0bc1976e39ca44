//! Janus-Pro as training knows it: exact log-probabilities of captions and of codes, guided and not, and checkpoints of what is
//! trained.
#![allow(clippy::unwrap_used, missing_docs)]

mod tiny;

use std::collections::HashMap;

use hermesflow_models::cost::TrainedSides;
use hermesflow_models::janus::{DrawOptions, Drawing, Janus, OfCodes};
use hermesflow_models::model::PairModel;
use hermesflow_models::{
    Backbone, CaptionExample, DType, Device, GivenReply, ImageDecoding, ImageExample, ImageView, ImagineJob,
    ImagineOptions, MaskedOptions, Scored, Tensor, UnifiedModel,
};
use hermesflow_nn::gradients;
use image::RgbImage;
use tiny::{TOKENS, codes, model, read};

fn view(model: &Janus, seed: u32) -> ImageView {
    let picture =
        RgbImage::from_fn(24, 18, |x, y| image::Rgb([(x * 9 + seed) as u8, (y * 11) as u8, (seed * 40) as u8]));
    let prepared = model.prepare(picture).unwrap();
    model.understand(&[prepared]).unwrap().remove(0)
}

fn captions(model: &Janus) -> Vec<CaptionExample> {
    let views = [view(model, 1), view(model, 2)];
    let example = |image: usize, question: &str, caption: &str| CaptionExample {
        image: views[image].clone(),
        question: question.into(),
        caption: caption.into(),
    };
    vec![
        example(0, "what is this?", "a large red circle"),
        example(0, "what is this?", " small blue squares "),
        example(1, "how many?", ""),
        example(0, "how many?", "7"),
    ]
}

fn images() -> Vec<ImageExample> {
    let example = |seed, prompt: &str, unconditional| ImageExample {
        prompt: prompt.into(),
        unconditional,
        codes: codes(seed),
        scored: Scored::All,
    };
    vec![
        example(0, "a large red circle", false),
        example(1, "a large red circle", false),
        example(2, "a large red circle above small blue squares", true),
        example(3, "", false),
        example(4, "small blue squares", false),
    ]
}

fn one_hot_log_probs(logits: &Tensor, targets: &[u32]) -> Tensor {
    let log_probs = logits.broadcast_sub(&logits.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap()).unwrap();
    let index = Tensor::new(targets, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
    log_probs.gather(&index, 1).unwrap().squeeze(1).unwrap()
}

/// By the words of the definition: the sum of `log softmax((1+g)·cond − g·uncond)` over all codes.
fn by_definition(model: &Janus, example: &ImageExample, guidance: f64) -> Tensor {
    let of = |unconditional| {
        let codes = OfCodes { prompt: &example.prompt, unconditional, codes: &example.codes };
        model.code_logits(&[codes]).unwrap()
    };
    let (cond, uncond) = (of(example.unconditional), of(true));
    let guided = ((cond * (1.0 + guidance)).unwrap() - (uncond * guidance).unwrap()).unwrap();
    one_hot_log_probs(&guided, &example.codes).sum_all().unwrap()
}

#[test]
fn guided_likelihoods_are_those_of_the_definition_and_a_batch_is_its_rows() {
    let model = model(2);
    for guidance in [0.0, 0.7, 4.0] {
        let together = read(&model.image_log_probs(&images(), guidance).unwrap());
        for (example, batched) in images().iter().zip(together) {
            let expected = by_definition(&model, example, guidance).to_scalar::<f32>().unwrap();
            assert!((batched - expected).abs() < 2e-4 * expected.abs(), "{guidance}: {batched} {expected}");
            let alone = read(&model.image_log_probs(std::slice::from_ref(example), guidance).unwrap())[0];
            assert!((batched - alone).abs() < 1e-4 * alone.abs(), "{guidance}: {batched} {alone}");
        }
    }
    let without = |guidance| read(&model.image_log_probs(&images()[2..3], guidance).unwrap())[0];
    assert!((without(0.0) - without(4.0)).abs() < 1e-3, "guidance has nothing to lead away from without a prompt");
    let prompted = |guidance| read(&model.image_log_probs(&images()[..1], guidance).unwrap())[0];
    assert!((prompted(0.0) - prompted(4.0)).abs() > 0.1);
    assert!(model.image_log_probs(&images(), -0.5).is_err() && model.image_log_probs(&images(), f64::NAN).is_err());
}

#[test]
fn what_is_trained_is_what_draws() {
    let model = model(4);
    for guidance in [0.0, 3.0] {
        let example = &images()[0];
        let prompt = model.conversation().prompt(&example.prompt).unwrap();
        let options = DrawOptions { guidance: 1.0 + guidance, ..DrawOptions::default() };
        let mut drawing = Drawing::new(&model, &[prompt], guidance != 0.0).unwrap();
        let mut drawn = 0.0;
        for (at, &code) in example.codes.iter().enumerate() {
            drawn += f64::from(drawing.probabilities(&options).unwrap()[0][code as usize]).ln();
            if at + 1 < TOKENS {
                drawing.advance(&[code]).unwrap();
            }
        }
        let scored = f64::from(read(&model.image_log_probs(std::slice::from_ref(example), guidance).unwrap())[0]);
        assert!((drawn - scored).abs() < 1e-3 * drawn.abs(), "{guidance}: {drawn} {scored}");
    }
}

#[test]
fn gradients_flow_through_both_rows() {
    let model = model(2).trainable(&["language_model.", "gen_embed.", "gen_aligner.", "gen_head."]).unwrap();
    let examples = images();
    let loss = model.image_log_probs(&examples, 1.5).unwrap().sum_all().unwrap();
    let found = gradients::backward(&loss).unwrap();
    let terms: Vec<Tensor> = examples.iter().map(|example| by_definition(&model, example, 1.5)).collect();
    let expected = gradients::backward(&Tensor::stack(&terms, 0).unwrap().sum_all().unwrap()).unwrap();
    let mut seen = 0;
    for (name, var) in model.parameters() {
        let (Some(found), Some(expected)) = (found.get(&var), expected.get(&var)) else { continue };
        let (found, expected) = (read(found), read(expected));
        let largest = expected.iter().fold(0f32, |largest, number| largest.max(number.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 2e-3 * largest + 1e-6, "{name}: {found} {expected}, of {largest}");
        }
        seen += usize::from(largest > 0.0);
    }
    assert!(seen > 20, "{seen} parameters have gradients");
}

#[test]
fn given_replies_are_as_likely_as_captions_in_training() {
    let model = model(4);
    let examples = captions(&model);
    let together = read(&model.caption_log_probs(&examples).unwrap());
    let (sums, counts) = model.caption_log_probs_counted(&examples).unwrap();
    assert_eq!(read(&sums), together);
    for ((example, log_prob), count) in examples.iter().zip(&together).zip(counts) {
        let alone = read(&model.caption_log_probs(std::slice::from_ref(example)).unwrap())[0];
        assert!((alone - log_prob).abs() < 1e-4 * alone.abs(), "{alone} {log_prob}");
        let given = [GivenReply { question: example.question.clone(), reply: example.caption.clone() }];
        let likelihood = model.score_replies(&[(&example.image, &given[..])]).unwrap()[0][0];
        assert!((likelihood.log_prob - f64::from(*log_prob)).abs() < 1e-3 && likelihood.tokens == count);
        model.check_caption(&example.question, &example.caption).unwrap();
    }
    assert!(model.score_replies(&[(&examples[0].image, &[])]).unwrap()[0].is_empty());
    assert!(model.check_caption("what?", &"a large red circle ".repeat(600)).is_err());
}

#[test]
fn what_belongs_to_another_kind_of_model_is_refused() {
    let model = model(4);
    assert_eq!(model.image_decoding(), ImageDecoding::NextCode);
    assert!(PairModel::scores_all(&model));
    let masked = ImageExample { scored: Scored::Masked(vec![0, 3]), ..images().remove(0) };
    assert!(model.image_log_probs(&[masked], 0.0).unwrap_err().to_string().contains("masked"));
    let by_codes = CaptionExample { image: ImageView::Codes(codes(1)), ..captions(&model).remove(0) };
    assert!(model.caption_log_probs(&[by_codes]).unwrap_err().to_string().contains("pixels"));
    let job = ImagineJob { prompt: "a circle".into(), seed: 1, known: vec![] };
    let options = ImagineOptions::from(MaskedOptions::default());
    assert!(model.imagine(&[job], &options).unwrap_err().to_string().contains("one code after the other"));
    let part = ["vision_model.".to_owned()];
    assert!(model.trainable_parts(&part, TrainedSides::Both).unwrap_err().to_string().contains("language_model."));
}

#[test]
fn a_checkpoint_of_what_is_trained_is_a_whole_model() {
    let base = model(2);
    let policy =
        base.trainable_parts(&["gen_head.".into(), "language_model.lm_head.".into()], TrainedSides::Both).unwrap();
    let parameters = policy.parameters();
    assert!(parameters.len() == 5, "{}", parameters.len());
    for (_, var) in &parameters {
        var.set(&(var.as_detached_tensor() * 1.5).unwrap()).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let trained: HashMap<String, Tensor> =
        parameters.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    hermesflow_nn::weights::save_tensors(&folder.path().join("pytorch_model.safetensors"), &trained).unwrap();
    policy.describe(folder.path()).unwrap();
    let opened = Janus::load(folder.path(), DType::F32, &Device::Cpu).unwrap();
    let log_probs = |model: &dyn PairModel| read(&model.image_log_probs(&images(), 0.0).unwrap());
    assert_eq!(log_probs(&opened), log_probs(&*policy));
    assert_ne!(log_probs(&opened), log_probs(&base));

    let whole = tempfile::tempdir().unwrap();
    policy.save_trained(whole.path()).unwrap();
    let reopened = base.reopened(whole.path()).unwrap();
    assert_eq!(log_probs(&*reopened), log_probs(&*policy));
    let again = Janus::load(whole.path(), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(again.weights().tensors().len(), base.weights().tensors().len(), "every tensor that it came with");
    assert_eq!(again.files().bytes("tokenizer.json"), base.files().bytes("tokenizer.json"));
    // What the index names must be there.
    std::fs::remove_file(folder.path().join("frozen.safetensors")).unwrap();
    assert!(Janus::load(folder.path(), DType::F32, &Device::Cpu).is_err());
}
