#![allow(clippy::unwrap_used)]
use super::curation::*;
use super::data::*;
use super::keys::Keys;
use super::products::ProductsName;
use super::*;
use crate::kernels;
use anyhow::Result;
use hermesflow_models::MaskSchedule;
use hermesflow_scenes::Split;

fn parse(yaml: &str, overrides: &[&str]) -> Result<RunConfig> {
    RunConfig::parse(yaml, &overrides.iter().map(|one| (*one).to_string()).collect::<Vec<_>>())
}

fn problem(yaml: &str, overrides: &[&str]) -> String {
    format!("{:#}", parse(yaml, overrides).unwrap_err())
}

#[test]
fn defaults_are_the_papers() {
    let config = parse("", &[]).unwrap();
    assert_eq!((config.iterations, config.imagine.images, config.imagine.steps), (3, 16, 50));
    let grid: Vec<_> = config.caption.candidates.iter().map(|one| (one.top_k, one.temperature)).collect();
    assert_eq!(grid.len(), 10);
    assert_eq!(grid[..4], [(1, 1.0), (2, 0.1), (2, 0.7), (2, 2.0)]);
    assert_eq!(
        (config.train.loss.beta, config.train.schedule.learning_rate, config.train.schedule.steps),
        (0.2, 2e-5, 3000)
    );
    assert_eq!((config.train.loss.anchor_und, config.train.loss.anchor_gen), (0.0, 0.0));
}

#[test]
fn the_judges_are_the_models_own_or_the_originals() {
    let judges =
        |config: &RunConfig| (config.pair.similarity, config.answer.matcher, config.ask.writer, config.ask.filter);
    let embedded = (Similarity::Lexical, Matcher::Lexical, Writer::Scenes, Filter::None);
    let original = (Similarity::Bert, Matcher::Sbert, Writer::Llama, Filter::Unifiedqa);
    assert_eq!(judges(&parse("", &[]).unwrap()), embedded);
    let model = ["model.showo=m", "model.vq=v", "model.tokenizer=t"];
    assert_eq!(judges(&parse("", &model).unwrap()), original);
    let template = parse("", &[&model[..], &["ask.writer=template", "pair.similarity=sbert"]].concat()).unwrap();
    assert_eq!(judges(&template), (Similarity::Sbert, Matcher::Sbert, Writer::Template, Filter::None));
    assert!(problem("", &["judges.beams=0"]).contains("judges.beams"));
    assert!(problem("", &["pair.similarity=bart"]).contains("bart"));
    for (preset, expected) in [
        (include_str!("../../../../configs/scenes.yaml"), embedded),
        (include_str!("../../../../configs/released.yaml"), original),
        (include_str!("../../../../configs/paper.yaml"), original),
    ] {
        assert_eq!(judges(&parse(preset, &[]).unwrap()), expected);
    }
}

#[test]
fn a_checkpoint_has_the_published_tokenizers() {
    let model = parse("model: {showo: showlab/show-o, dtype: bf16}", &[]).unwrap().model;
    assert_eq!((model.vq.as_deref(), model.tokenizer.as_deref()), (Some(MAGVIT), Some(PHI)));
    assert_eq!(parse("", &["model.showo=m", "model.vq=v"]).unwrap().model.vq.as_deref(), Some("v"));
    assert_eq!(parse("", &[]).unwrap().model.vq, None);
    let auto = |model: &str| parse("model: {dtype: auto}", &[model]).unwrap().model.dtype;
    assert_eq!(auto("model.showo=embedded"), DTypeName::F32);
    assert_eq!(
        auto("model.showo=m"),
        if kernels::bf16_is_faster(1 << 22, None) { DTypeName::BF16 } else { DTypeName::F32 }
    );
}

#[test]
fn a_device_is_named_or_chosen() {
    let device = |overrides: &[&str]| parse("", overrides).map(|config| config.model.device);
    assert_eq!(device(&[]).unwrap(), "cpu");
    assert_eq!(device(&["model.device=auto"]).unwrap(), "cpu", "the embedded model");
    assert_ne!(device(&["model.showo=m", "model.device=auto"]).unwrap(), "auto");
    let message = |name: &str| format!("{:#}", device(&[name]).unwrap_err());
    assert_eq!(
        message("model.device=gpu"),
        "model.device: \"gpu\" is no device; expected auto, cpu or cuda:N, such as cuda:0 (from the argument \
         model.device=gpu)"
    );
    // A GPU that is not there is missed by what works on it, not by what only reads the configuration.
    #[cfg(not(feature = "cuda"))]
    for dtype in ["f32", "auto", "bf16"] {
        let dtype = format!("model.dtype={dtype}");
        let config = parse("", &["model.showo=m", "model.device=cuda:0", &dtype]).unwrap();
        let message = format!("{:#}", config.model.device().unwrap_err());
        assert!(message.contains("built without CUDA: cargo build --release --features cuda"), "{message}");
    }
}

#[test]
fn products_of_training_follow_the_models_type() {
    let products = |overrides: &[&str]| parse("model: {showo: m}", overrides).unwrap().train.products;
    let rounded = if kernels::bf16_trains_faster(1 << 22, None) { ProductsName::Bf16 } else { ProductsName::F32 };
    let held = if kernels::bf16_is_faster(1 << 22, None) { rounded } else { ProductsName::F32 };
    assert_eq!(products(&[]), ProductsName::F32);
    assert_eq!(products(&["model.dtype=auto"]), held);
    assert_eq!(products(&["model.dtype=bf16"]), rounded);
    assert_eq!(products(&["model.dtype=bf16", "train.products=f32"]), ProductsName::F32);
    assert_eq!(products(&["train.products=bf16"]), ProductsName::Bf16);
    assert_eq!(parse("model: {dtype: auto}", &[]).unwrap().train.products, ProductsName::F32, "the embedded model");
}

#[test]
fn on_the_cpu_nothing_of_training_is_left_open() {
    let train = |overrides: &[&str]| parse("", overrides).unwrap().train;
    let open = train(&[]);
    assert_eq!((open.recompute, open.optimizer_state), (Recompute::Off, OptimizerState::Device));
    let chosen = train(&["train.checkpointing=true", "train.optimizer_state=host"]);
    assert_eq!((chosen.recompute, chosen.optimizer_state), (Recompute::On, OptimizerState::Host));
    let yaml = parse("", &["train.checkpointing=true"]).unwrap().to_yaml().unwrap();
    assert!(yaml.contains("recompute: true") && !yaml.contains("checkpointing"), "{yaml}");
    assert!(parse(&yaml, &["train.checkpointing=auto"]).is_ok());
    assert!(
        problem("", &["train.checkpointing=some"])
            .contains("train.checkpointing: invalid value: string \"some\", expected auto, true or false")
    );
    assert!(problem("", &["train.optimizer_state=gpu"]).contains("optimizer_state"));
}

#[test]
fn images_are_scored_as_the_paper_does_or_as_they_are_drawn() {
    let numbers = |yaml: &str, overrides: &[&str]| {
        let settings = parse(yaml, overrides).unwrap().train.pair_dpo(0);
        (settings.guidance, settings.prompt_dropout)
    };
    assert_eq!(numbers("", &[]), (0.0, 0.1), "the paper");
    assert_eq!(numbers("", &["train.guidance=auto"]), (5.0, 0.0), "what draws");
    assert_eq!(numbers("imagine: {guidance: 0.5}", &["train.guidance=auto"]), (0.5, 0.0));
    assert_eq!(numbers("imagine: {guidance: 0}", &["train.guidance=auto"]), (0.0, 0.1));
    assert_eq!(numbers("", &["train.guidance=2", "imagine.guidance=1"]), (2.0, 0.0));
    assert_eq!(numbers("", &["train.prompt_dropout=0.3"]), (0.0, 0.3));
    let yaml = parse("", &["train.guidance=auto"]).unwrap().to_yaml().unwrap();
    assert!(yaml.contains("  guidance: 5.0\n"), "{yaml}");
    assert_eq!(numbers(&yaml, &[]), (5.0, 0.0));
    assert!(problem("", &["train.guidance=much"]).contains("a number or auto"));
    assert!(problem("", &["train.guidance=-1"]).contains("train.guidance: -1 is not 0 or more"));

    let warned = |overrides: &[&str]| parse("", overrides).unwrap().trains_other_than_it_draws();
    let warning = warned(&[]).unwrap();
    assert!(warning.contains("guidance 5") && warning.contains("train.guidance=auto"), "{warning}");
    for quiet in
        ["train.guidance=auto", "imagine.guidance=0", "train.sides=und", "train.objective=continue_pretraining"]
    {
        assert_eq!(warned(&[quiet]), None, "{quiet}");
    }
}

#[test]
fn a_gpu_that_is_not_here_can_be_predicted_for() {
    let overrides = ["model.showo=m", "model.device=cuda:7", "model.dtype=auto"].map(String::from);
    let (config, _) = RunConfig::read("", &overrides, |_| None).unwrap();
    assert_eq!((config.model.dtype, config.train.products), (DTypeName::BF16, ProductsName::Bf16));
    assert_eq!(config.train.recompute, Recompute::Auto, "until the model is known");
    assert_eq!(config.train.optimizer_state, OptimizerState::Auto);
}

#[test]
fn overrides_win_and_reach_new_sections() {
    let yaml = "seed: 1\ntrain: {steps: 10, warmup_steps: 2}\n";
    let overrides = ["seed=7", "train.steps=20", "data.scenes.records=5", "train.watch.stop=true"];
    let config = parse(yaml, &overrides).unwrap();
    assert_eq!((config.seed, config.train.schedule.steps, config.train.schedule.warmup_steps), (7, 20, 2));
    assert_eq!(config.data.scenes, Some(ScenesSettings { records: 5, split: Split::Train }));
    assert!(config.train.watch.unwrap().stop);
    let config = parse(yaml, &["caption.candidates=[{top_k: 1, temperature: 1.0}, {top_k: 3, temperature: 0.5}]"]);
    assert_eq!(config.unwrap().caption.candidates[1], SamplingSettings { top_k: 3, temperature: 0.5 });
    assert_eq!(parse(yaml, &["train.max_grad_norm=null"]).unwrap().train.max_grad_norm, None);
}

#[test]
fn mask_schedules_are_named_as_in_the_original() {
    let config = parse("", &[]).unwrap();
    assert_eq!((config.imagine.schedule, config.train.masking.mask_schedule), Default::default());
    let sigmoid = "imagine.schedule={schedule: sigmoid, params: {start: -2, tau: 0.5}}";
    let config = parse("", &["train.mask_schedule=pow2", sigmoid]).unwrap();
    assert_eq!(config.train.masking.mask_schedule, MaskSchedule::Pow(2.0));
    assert_eq!(config.imagine.schedule.to_string(), "sigmoid");
    assert_eq!(parse(&config.to_yaml().unwrap(), &[]).unwrap(), config);
}

#[test]
fn what_was_resolved_reads_back_as_it_was() {
    let config = parse("seed: 3", &["train.learning_rate=1e-4", "data.scenes.records=5"]).unwrap();
    assert_eq!(parse(&config.to_yaml().unwrap(), &[]).unwrap(), config);
}

#[test]
fn problems_name_the_key() {
    assert!(problem("trian: {}", &[]).contains("trian"));
    assert!(problem("", &["train.stepz=3"]).contains("stepz"));
    assert!(problem("", &["train.steps"]).contains("key=value"));
    assert!(problem("seed: 1", &["seed.x=3"]).contains("\"x\""));
    assert!(problem("", &["train.steps=many"]).contains("train.steps"));
    assert!(problem("", &["train.warmup_steps=5000"]).contains("5000"), "the released 512 configuration");
    assert!(problem("", &["imagine.images=1"]).contains("imagine.images"));
    assert!(problem("", &["caption.candidates=[]"]).contains("caption.candidates"));
    assert!(problem("", &["model.vq=models/magvit"]).contains("embedded"));
    assert!(problem("", &["ask.writer=file"]).contains("ask.file"));
    assert!(problem("", &["imagine.schedule=cosin"]).contains("imagine: \"cosin\" is no mask schedule"));
    assert!(problem("", &["train.mask_schedule=3"]).contains("train.masking: a mask schedule is cosine, linear, pow2"));
    assert!(problem("", &["train.min_masking_rate=2"]).contains("min_masking_rate"));
    assert!(problem("", &["train.mask_contiguous_region_prob=-1"]).contains("mask_contiguous_region_prob"));
    assert!(problem("", &["pair.min_accuracy=60"]).contains("pair.min_accuracy"));
}

/// A key that takes any text takes it as it stands behind the file: the list of these keys is whole.
#[test]
fn every_key_that_takes_any_text_is_known_to() {
    fn leaves(tree: &serde_yaml_ng::Value, key: &str, out: &mut Vec<String>) {
        match tree.as_mapping() {
            Some(map) => map.iter().for_each(|(name, inner)| {
                let name = name.as_str().unwrap();
                leaves(inner, &if key.is_empty() { name.into() } else { format!("{key}.{name}") }, out);
            }),
            None => out.push(key.to_owned()),
        }
    }
    let mut keys = Vec::new();
    leaves(&serde_yaml_ng::to_value(RunConfig::default()).unwrap(), "", &mut keys);
    assert!(keys.len() > 60);
    let model = "model: {checkpoint: m}\n";
    for key in keys {
        let mut tree = overrides::tree(model).unwrap();
        yaml::set(&mut tree, &key, "1e3 #".into()).unwrap();
        let takes_any_text = overrides::read::<RunConfig>(&tree).is_ok();
        assert_eq!(takes_any_text, Keys::run().takes_any_text(&key), "{key}");
    }
}
