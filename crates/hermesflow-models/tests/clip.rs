//! The CLIP variant of Show-o against transformers and PyTorch, recorded by `tools/record/clip.py`, and the
//! properties that it shares with the other.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use hermesflow_models::preprocess;
use hermesflow_models::showo::pretrain::random_magvit;
use hermesflow_models::showo::projector::{PROJECTOR_PARAMETERS, Projector};
use hermesflow_models::showo::reply::{QuestionRows, Sample, write_replies};
use hermesflow_models::showo::sequence::Packed;
use hermesflow_models::showo::{ClipVision, Magvit, MagvitConfig, Phi, Showo, ShowoTokenizer, read_configs};
use hermesflow_models::{
    CaptionExample, DType, Device, ImageExample, ImageView, PairModel, ReplyRequest, Sampling, Scored, Tensor,
    UnifiedModel, Weights,
};
use image::RgbImage;

const QUESTION: &str = "Give a caption for this image.";

fn recorded(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clip").join(name)
}

fn trace() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(recorded("trace.safetensors"), &Device::Cpu).unwrap()
}

fn tower() -> ClipVision {
    ClipVision::load(&recorded("clip"), DType::F32, &Device::Cpu).unwrap()
}

fn without_tower() -> Showo {
    let (config, phi) = read_configs(&recorded("showo")).unwrap();
    let vq = MagvitConfig {
        class_name: "MAGVITv2".into(),
        ch: 8,
        ch_mult: Some(vec![1, 1, 2]),
        num_res_blocks: Some(vec![1; 3]),
        z_channels: 6,
        resolution: 16,
        norm_groups: 4,
    };
    let magvit = Magvit::new(&random_magvit(&vq, 1, &Device::Cpu).unwrap(), &vq).unwrap();
    let tokenizer = ShowoTokenizer::load(&recorded("tokenizer.json"), &config).unwrap();
    let weights = Weights::load(&recorded("showo"), DType::F32, &Device::Cpu).unwrap();
    Showo::new(config, phi, weights, tokenizer, magvit).unwrap()
}

fn model() -> Showo {
    without_tower().with_clip(tower()).unwrap()
}

fn picture() -> RgbImage {
    preprocess::load(&recorded("picture.png")).unwrap()
}

/// The recorded square, whose levels are exactly those that the recorded features come from.
fn square() -> RgbImage {
    let square = &trace()["square"];
    let (height, width, _) = square.dims3().unwrap();
    let levels = square.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    RgbImage::from_raw(width as u32, height as u32, levels).unwrap()
}

fn mirrored() -> RgbImage {
    image::imageops::flip_horizontal(&picture())
}

fn request(question: &str, top_k: usize, max_new_tokens: usize) -> ReplyRequest {
    ReplyRequest { question: question.into(), sampling: Sampling { top_k, temperature: 1.0 }, seed: 3, max_new_tokens }
}

#[track_caller]
fn close(ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.dims(), theirs.dims());
    let difference = (ours - theirs).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    let difference = difference.to_scalar::<f32>().unwrap();
    assert!(difference < 1e-4, "{difference}");
}

#[test]
fn the_square_is_that_of_transformers() {
    let (ours, theirs) = (tower().square(&picture()).unwrap(), square());
    assert_eq!(ours.dimensions(), theirs.dimensions());
    let furthest = ours.as_raw().iter().zip(theirs.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(furthest <= Some(1), "{furthest:?} levels");
    let torchvision = preprocess::load_square(&recorded("picture.png"), theirs.width() as usize).unwrap();
    assert_ne!(torchvision, ours, "the picture does not tell the two centres apart");
}

fn read(model: &Showo, picture: RgbImage) -> ImageView {
    model.understand(&[model.prepare(picture).unwrap()]).unwrap().remove(0)
}

#[test]
fn features_and_their_projection_are_pytorchs() {
    let (model, trace) = (model(), trace());
    let ImageView::Features(features) = &read(&model, square()) else { panic!("the CLIP variant reads features") };
    close(features, &trace["features"]);
    let (_, width) = features.dims2().unwrap();
    let projector = Projector::new(model.weights(), width, model.phi_config().hidden_size).unwrap();
    close(&projector.forward(features).unwrap(), &trace["projected"]);
}

#[test]
fn the_sequence_its_logits_and_the_reply_are_the_originals() {
    let (model, trace) = (model(), trace());
    let image = read(&model, square());
    let mut packed = Packed::default();
    let block = model.pack_image(&mut packed, &image).unwrap();
    let ids = model.question_ids(QUESTION).unwrap();
    let rows = packed.push(&ids, block.len(), vec![block.clone()], true);
    let theirs = trace["ids"].to_vec1::<i64>().unwrap();
    assert_eq!(packed.ids.len(), theirs.len());
    for (row, (&ours, theirs)) in packed.ids.iter().zip(theirs).enumerate() {
        assert!(theirs == -1 || i64::from(ours) == theirs, "row {row}: {ours}, recorded {theirs}");
    }

    let phi = Phi::new(model.weights(), model.config(), model.phi_config()).unwrap();
    let embedded = packed.embed(&phi).unwrap();
    let hidden = phi.forward(embedded, &packed.positions, &packed.segments(), None).unwrap();
    close(&phi.logits(&hidden, None).unwrap(), &trace["logits"]);

    let theirs: Vec<u32> = trace["reply"].to_vec1::<i64>().unwrap().into_iter().map(|id| id as u32).collect();
    let request = request(QUESTION, 1, theirs.len());
    let mut sample = [Sample::new(0, &request)];
    let eot = model.tokenizer().special.eot;
    write_replies(&phi, &packed, &[QuestionRows { block, rows }], &mut sample, eot).unwrap();
    assert_eq!(sample[0].tokens, theirs);

    let reply = model.reply(&image, &[request]).unwrap().remove(0);
    assert_eq!(reply.text, model.tokenizer().decode(&theirs).unwrap());
    let log_prob = f64::from(trace["log_prob"].to_vec1::<f32>().unwrap()[0]);
    assert!((reply.log_prob - log_prob).abs() < 1e-4, "{} {log_prob}", reply.log_prob);
}

#[test]
fn a_batch_equals_its_parts() {
    let model = model();
    let views = model.understand(&[picture(), mirrored()].map(|one| model.prepare(one).unwrap())).unwrap();
    let requests = [request(QUESTION, 1, 9), request("How many?", 0, 9), request(QUESTION, 5, 9)];
    let together = model.reply_many(&[(&views[0], &requests), (&views[1], &requests[..2])]).unwrap();
    assert_eq!(together[1].len(), 2);
    for (picture, replies) in [picture(), mirrored()].into_iter().zip(&together) {
        let alone = read(&model, picture);
        for (request, reply) in requests.iter().zip(replies) {
            let alone = model.reply(&alone, std::slice::from_ref(request)).unwrap().remove(0);
            assert_eq!(alone.text, reply.text);
            assert!((alone.log_prob - reply.log_prob).abs() < 1e-4, "{alone:?} {reply:?}");
        }
    }
    assert!((together[0][0].log_prob - together[1][0].log_prob).abs() > 1e-3, "the picture does not matter");
}

#[test]
fn a_saved_model_keeps_its_projector() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path(), DType::F32).unwrap();
    assert!(read_configs(folder.path()).unwrap().0.w_clip_vit);
    let weights = Weights::load(folder.path(), DType::F32, &Device::Cpu).unwrap();
    assert!(PROJECTOR_PARAMETERS.iter().all(|name| weights.tensors().contains_key(*name)));
    let again = model.with_weights(weights).unwrap();
    let said = |model: &Showo| {
        let view = read(model, picture());
        model.reply(&view, &[request(QUESTION, 1, 9)]).unwrap()
    };
    assert_eq!(said(&again), said(&model));
}

#[test]
fn other_weights_bring_their_own_projector() {
    let model = model();
    let halved = model.weights().tensors().iter().map(|(name, tensor)| {
        let factor = if name.starts_with("mm_projector") { 0.5 } else { 1.0 };
        (name.clone(), (tensor * factor).unwrap())
    });
    let other = model.with_weights(Weights::from_tensors(halved.collect::<Vec<_>>(), "halved")).unwrap();
    let view = read(&model, picture());
    let log_prob = |model: &Showo| model.reply(&view, &[request(QUESTION, 1, 1)]).unwrap()[0].log_prob;
    assert!((log_prob(&model) - log_prob(&other)).abs() > 1e-4);
    let named = model.weights().tensors().iter().filter(|(name, _)| *name != "mm_projector.2.bias");
    let named = named.map(|(name, tensor)| (name.clone(), tensor.clone()));
    let said = model.with_weights(Weights::from_tensors(named.collect::<Vec<_>>(), "lacking")).unwrap_err();
    assert!(said.to_string().contains("mm_projector.2.bias"), "{said}");
}

/// The images of the variant are trained as any other's: every parameter that training sees has a gradient.
#[test]
fn only_the_images_are_trained() {
    let model = model().trainable().unwrap();
    let tokens = model.image_tokens();
    let example = ImageExample {
        prompt: "a caption".into(),
        unconditional: false,
        codes: vec![1; tokens],
        scored: Scored::Masked(vec![0, 3]),
    };
    let gradients = model.image_log_probs(&[example], 0.0).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(model.parameters().iter().all(|(_, variable)| gradients.get(variable.as_tensor()).is_some()));
    assert_eq!(model.parameters().len() + PROJECTOR_PARAMETERS.len(), model.weights().tensors().len());
    let caption = CaptionExample {
        image: ImageView::Codes(vec![1; tokens]),
        question: QUESTION.into(),
        caption: "a caption".into(),
    };
    let said = model.caption_log_probs(&[caption]).unwrap_err().to_string();
    assert!(said.contains("w_clip_vit") && said.contains("train its images only"), "{said}");
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let model = model();
    let codes = ImageView::Codes(vec![0; model.image_tokens()]);
    assert!(model.reply(&codes, &[request(QUESTION, 1, 1)]).is_err());
    let said = without_tower().prepare(picture()).unwrap_err().to_string();
    assert!(said.contains("no CLIP vision tower"), "{said}");
    let mut narrow = tower().config().clone();
    narrow.num_hidden_layers = 9;
    let weights = Weights::load(&recorded("clip"), DType::F32, &Device::Cpu).unwrap();
    let said = ClipVision::new(&weights, narrow).unwrap_err().to_string();
    assert!(said.contains("encoder.layers.3") && said.contains("config.json"), "{said}");
}
