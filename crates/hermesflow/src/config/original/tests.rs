#![allow(clippy::unwrap_used)]

use super::super::{RunConfig, TrainSettings};
use super::translate;
use super::wrapped;
use crate::config::overrides;
use hermesflow_train::Schedule;

const DEMO: &str = include_str!("../../../tests/original/hermesflow_demo_512x512.yaml");
const PAIR_DPO: &str = include_str!("../../../tests/original/hermesflow_pairdpo.yaml");
const SHOWO_DEMO: &str = include_str!("../../../tests/original/showo_demo.yaml");
const SHOWO_CLIP: &str = include_str!("../../../tests/original/showo_demo_w_clip_vit_512x512.yaml");
const SHOWO_TUNING: &str = include_str!("../../../tests/original/showo_tuning.yaml");

fn read(yaml: &str, arguments: &[&str]) -> anyhow::Result<(RunConfig, Vec<String>)> {
    RunConfig::read(yaml, &arguments.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>(), |_| None)
}

fn config(yaml: &str, arguments: &[&str]) -> RunConfig {
    read(yaml, arguments).unwrap().0
}

/// All warnings.
fn said(yaml: &str, arguments: &[&str]) -> String {
    read(yaml, arguments).unwrap().1.join(" ")
}

fn problem(yaml: &str, arguments: &[&str]) -> String {
    format!("{:#}", read(yaml, arguments).unwrap_err())
}

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// The defaults, with what the machine decides of them as it was resolved here.
fn untouched(resolved: &TrainSettings) -> TrainSettings {
    let TrainSettings { products, recompute, optimizer_state, .. } = *resolved;
    TrainSettings { products, recompute, optimizer_state, ..TrainSettings::default() }
}

#[test]
fn the_published_files_run_as_they_are() {
    let demo = config(DEMO, &[]);
    assert_eq!(demo.model.checkpoint, "showlab/show-o-512x512");
    assert_eq!(demo.model.vq.as_deref(), Some("showlab/magvitv2"));
    assert_eq!(demo.model.tokenizer.as_deref(), Some("microsoft/phi-1_5"));
    assert_eq!(demo.output.to_str(), Some("hermesflow-demo"));
    assert_eq!((demo.caption.max_new_tokens, demo.answer.max_new_tokens), (100, 100));
    assert_eq!((demo.imagine.images, demo.imagine.steps, demo.imagine.guidance), (16, 50, 5.0));
    let expect = demo.model.expect;
    assert_eq!((expect.image_tokens, expect.resolution, expect.clip), (Some(1024), Some(512), Some(false)));
    assert_eq!(
        (expect.vocab_size, expect.llm_vocab_size, expect.codebook_size),
        (Some(58498), Some(50295), Some(8192))
    );
    assert_eq!(demo.train, untouched(&demo.train), "a demo says nothing about training");

    let train = config(PAIR_DPO, &[]);
    assert_eq!((train.seed, train.output.to_str()), (10086, Some("hermesflow-training-pairdpo_vqa_iteration1")));
    assert_eq!(train.data.root.to_str(), Some("datasets/journeydb"));
    let settings = TrainSettings {
        schedule: Schedule { warmup_steps: 5000, steps: 50_000, ..Schedule::default() },
        batch_size: 1,
        max_grad_norm: None,
        checkpoint_every: 1000,
        ..untouched(&train.train)
    };
    assert_eq!(train.train, settings);

    assert_eq!(config(SHOWO_DEMO, &[]).model.expect.image_tokens, Some(256));
    assert_eq!(config(SHOWO_CLIP, &[]).model.expect.clip, Some(true));
    let tuning = config(SHOWO_TUNING, &[]).train;
    assert_eq!((tuning.batch_size, tuning.schedule.steps, tuning.schedule.learning_rate), (3, 19_600, 1e-4));
}

#[test]
fn what_was_translated_is_ours_when_it_is_saved() {
    for yaml in [DEMO, PAIR_DPO, SHOWO_CLIP] {
        let config = config(yaml, &["guidance_scale=3", "train.steps=20"]);
        let (again, warnings) = read(&config.to_yaml().unwrap(), &[]).unwrap();
        assert_eq!((again, warnings), (config, vec![]));
    }
}

#[test]
fn the_released_preset_is_the_published_file_for_3000_steps() {
    let published = config(PAIR_DPO, &["training.max_train_steps=3000"]);
    let preset = config(include_str!("../../../../../configs/released.yaml"), &[]);
    assert_eq!(published.train, preset.train, "with the warm-up that fits");
    let demo = config(DEMO, &["batch_size=1", "guidance_scale=5", "generation_timesteps=50", "mode='t2i'"]);
    assert_eq!((demo.imagine, demo.caption, demo.answer), (preset.imagine, preset.caption, preset.answer));
    assert_eq!(published.seed, preset.seed);
}

#[test]
fn one_warning_names_what_is_not_translated() {
    let (_, warnings) = read(PAIR_DPO, &["training.colour=blue", "lr_scheduler.params.min_lr=0"]).unwrap();
    assert_eq!(warnings.len(), 2, "and the fault of the released file");
    let lines = wrapped(&warnings[0]);
    assert!(lines.lines().count() > 5 && lines.lines().all(|line| line.chars().count() <= 100), "{lines}");
    let text = said(PAIR_DPO, &["training.colour=blue", "lr_scheduler.params.min_lr=0"]);
    contains(
        &text,
        &[
            "Unknown: lr_scheduler.params.min_lr, training.colour.",
            "Not followed: training.guidance_scale and training.generation_timesteps (",
            "training.mixed_precision (bf16 there, training is in f32 here)",
            "Without a meaning here: wandb.*, experiment.project,",
            "dataset.params.num_workers",
        ],
    );
    assert!(!text.contains("max_train_steps"), "a key that is followed: {text}");
    assert!(!said(DEMO, &[]).contains("Unknown"), "{}", said(DEMO, &[]));
    for yaml in [PAIR_DPO, SHOWO_DEMO, SHOWO_CLIP, SHOWO_TUNING] {
        assert!(!said(yaml, &[]).contains("Unknown"), "{}", said(yaml, &[]));
    }
    contains(&said(SHOWO_TUNING, &[]), &["Show-o's own training", "load_from_showo (", "max_seq_length ("]);
}

#[test]
fn overrides_in_the_originals_names() {
    let arguments = [
        "training.batch_size=4",
        "optimizer.params.learning_rate=1e-5",
        "training.max_train_steps=100",
        "lr_scheduler.params.warmup_steps=7",
        "training.max_grad_norm=0.5",
        "experiment.output_dir=out/${experiment.project}",
        "dataset.params.dpo_data_path=elsewhere/pair_dpo_data_iter2.json",
        "pretrained_model_path=checkpoints/showo",
    ];
    let config = config(PAIR_DPO, &arguments);
    let train = &config.train;
    let schedule = train.schedule;
    assert_eq!((train.batch_size, schedule.learning_rate, schedule.steps, schedule.warmup_steps), (4, 1e-5, 100, 7));
    assert_eq!((train.max_grad_norm, config.output.to_str()), (Some(0.5), Some("out/training")));
    assert_eq!((config.data.root.to_str(), config.model.checkpoint.as_str()), (Some("elsewhere"), "checkpoints/showo"));
    contains(&said(PAIR_DPO, &arguments), &["--iteration 2"]);
}

#[test]
fn overrides_as_the_python_scripts_take_them() {
    let config = config(
        SHOWO_DEMO,
        &["mode='t2i'", "batch_size=32", "guidance_scale=1.75", "generation_timesteps=18", "question=What is this?"],
    );
    assert_eq!((config.imagine.guidance, config.imagine.steps), (1.75, 18));
    assert_eq!(config.caption.question, "What is this?");
    let text = said(SHOWO_DEMO, &["mmu_image_root=./mmu_validation", "validation_prompts_file=p.txt", "batch_size=1"]);
    contains(&text, &["validation_prompts_file and mmu_image_root (a run works on the records", "batch_size"]);
    contains(&problem(SHOWO_DEMO, &["mode=inpainting"]), &["mode: ", "hermesflow inpaint"]);
    contains(&problem(SHOWO_DEMO, &["mode=video"]), &["mode: \"video\""]);
    contains(&problem(SHOWO_DEMO, &["question=a *** b"]), &["question: ", "several"]);
}

#[test]
fn mask_schedules_are_those_of_decoding_and_training() {
    let schedules = |arguments: &[&str]| {
        let arguments: Vec<String> = arguments.iter().map(|one| (*one).to_owned()).collect();
        let (tree, _) = translate(overrides::tree(SHOWO_DEMO).unwrap(), &arguments).unwrap();
        let at = |section: &str, key: &str| tree.get(section).and_then(|section| section.get(key)).cloned();
        let trained = tree.get("train").and_then(|train| train.get("masking"));
        assert_eq!(at("imagine", "schedule"), trained.and_then(|masking| masking.get("mask_schedule")).cloned());
        at("imagine", "schedule").map(|schedule| serde_json::to_string(&schedule).unwrap())
    };
    assert_eq!(schedules(&["training.mask_schedule=cosine"]), None, "the default");
    assert_eq!(schedules(&["training.mask_schedule=pow0.5"]).as_deref(), Some("\"pow0.5\""));
    let both = ["training.mask_schedule=linear", "mask_schedule.schedule=sigmoid", "mask_schedule.params.tau=0.5"];
    let sigmoid = r#"{"schedule":"sigmoid","params":{"tau":0.5}}"#;
    assert_eq!(schedules(&both).as_deref(), Some(sigmoid), "as in the original, the section wins");
    let said = problem(SHOWO_DEMO, &["mask_schedule.schedule=square"]);
    contains(&said, &["mask_schedule.schedule: \"square\" is none of"]);
}

#[test]
fn our_own_keys_go_over_the_translation() {
    let arguments =
        ["training.max_train_steps=90", "train.steps=40", "imagine.images=4", "model.showo=models/mine", "--"];
    let config = config(PAIR_DPO, &arguments[..4]);
    assert_eq!(
        (config.train.schedule.steps, config.imagine.images, config.model.checkpoint.as_str()),
        (40, 4, "models/mine")
    );
    let mixed = format!("{DEMO}\ntrain: {{ anchor_gen: 0.5 }}\nimagine: {{ images: 3 }}\n");
    let mixed = self::config(&mixed, &["imagine.images=2", "model.expect={}"]);
    assert_eq!((mixed.train.loss.anchor_gen, mixed.imagine.images), (0.5, 2));
    assert!(mixed.model.expect.is_empty());
    contains(&problem(PAIR_DPO, &["train.stepz=3"]), &["stepz"]);
    contains(&problem(PAIR_DPO, &arguments), &["\"--\" is not key=value"]);
}

#[test]
fn a_warmup_that_does_not_fit_is_shortened_and_said() {
    for arguments in [&["training.max_train_steps=3000"][..], &["train.steps=3000"]] {
        assert_eq!(config(PAIR_DPO, arguments).train.schedule.warmup_steps, 300);
        contains(&said(PAIR_DPO, arguments), &["warm-up of 5000 steps", "training of 3000", "shortened to 300"]);
    }
    assert_eq!(config(DEMO, &["train.steps=2"]).train.schedule.warmup_steps, 0);
    contains(&problem(PAIR_DPO, &["training.max_train_steps=3000", "train.warmup_steps=4000"]), &["4000", "3000"]);
    assert!(!said(PAIR_DPO, &[]).contains("warm-up"), "5,000 of 50,000 fit");
}

#[test]
fn a_512_checkpoint_at_256_tokens_works_at_its_own_resolution() {
    let expect = config(PAIR_DPO, &[]).model.expect;
    assert_eq!((expect.image_tokens, expect.resolution, expect.codebook_size), (None, None, Some(8192)));
    contains(&said(PAIR_DPO, &[]), &["256 image tokens", "showlab/show-o-512x512", "fault of the released"]);
    let other = ["model.showo.pretrained_model_path=showlab/show-o"];
    assert_eq!(config(PAIR_DPO, &other).model.expect.image_tokens, Some(256));
    assert!(!said(PAIR_DPO, &other).contains("fault"));
    assert!(!said(DEMO, &[]).contains("fault"));
    let folder = ["model.showo=models/show-o-512/"];
    assert_eq!(config(PAIR_DPO, &folder).model.expect.image_tokens, None, "by its folder's name");
}

#[test]
fn of_the_two_spellings_of_the_data_root_the_one_that_exists_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let root = |name: &str| folder.path().join(name);
    let written = format!("dataset.params.dpo_data_path={}", root("journydb").join("pair_dpo_data.json").display());
    assert_eq!(config(PAIR_DPO, &[&written]).data.root, root("journydb"), "neither exists");
    std::fs::create_dir(root("journeydb")).unwrap();
    assert_eq!(config(PAIR_DPO, &[&written]).data.root, root("journeydb"));
    contains(&said(PAIR_DPO, &[&written]), &["journydb does not exist; the data root is"]);
    std::fs::create_dir(root("journydb")).unwrap();
    assert_eq!(config(PAIR_DPO, &[&written]).data.root, root("journydb"));
}

#[test]
fn contradictions_are_refused() {
    for (yaml, argument, parts) in [
        (DEMO, "model.showo.num_vq_tokens=256", &["model.showo.num_vq_tokens: 256", "512 pixels", "1024 tokens"][..]),
        (DEMO, "dataset.params.resolution=256", &["model.showo.num_vq_tokens: 1024", "256 pixels"]),
        (DEMO, "model.showo.codebook_size=4096", &["model.showo.vocab_size: 58498", "54402"]),
        (DEMO, "model.showo.num_new_special_tokens=9", &["num_new_special_tokens: 9"]),
        (PAIR_DPO, "lr_scheduler.params.learning_rate=1e-4", &["optimizer.params.learning_rate is 0.00002", "0.0001"]),
        (PAIR_DPO, "training.batch_size_mmu=2", &["training.batch_size_t2i is 1", "training.batch_size_mmu is 2"]),
        (DEMO, "dataset.params.batch_size=3", &["dataset.params.batch_size is 3", "training.batch_size is 20"]),
    ] {
        contains(&problem(yaml, &[argument]), parts);
    }
    let twice = DEMO.replacen("resolution: 512", "resolution: 256", 1);
    contains(&problem(&twice, &[]), &["dataset.params.resolution is 256", "dataset.preprocessing.resolution is 512"]);
    contains(&problem(&DEMO.replace("pretrained_model_path", "elsewhere"), &[]), &["pretrained_model_path: missing"]);
}

#[test]
fn what_is_not_here_and_wrong_types_name_the_original_key() {
    for (argument, parts) in [
        ("training.max_train_steps=many", "training.max_train_steps: expected a whole number, found \"many\""),
        ("training.seed=-1", "training.seed: expected a whole number"),
        ("optimizer.params.learning_rate=high", "learning_rate: expected a number"),
        ("training=1", "training: expected a section, found 1"),
        ("model.showo.w_clip_vit=maybe", "model.showo.w_clip_vit: expected True or False"),
        ("optimizer.name=[a]", "optimizer.name: expected a text"),
        ("optimizer.name=lion", "optimizer.name: \"lion\""),
        ("lr_scheduler.scheduler=polynomial", "lr_scheduler.scheduler: \"polynomial\""),
        ("model.vq_model.type=vq16", "model.vq_model.type: \"vq16\""),
        ("training.mask_schedule=square", "training.mask_schedule: \"square\""),
        ("dataset.params.dpo_data_path=my.json", "dataset.params.dpo_data_path: my.json"),
        ("experiment.resume_from_checkpoint=[1]", "experiment.resume_from_checkpoint: expected latest"),
        ("training.beta=${nowhere.at.all}", "training.beta: ${nowhere.at.all} refers to nowhere.at.all"),
    ] {
        // A broken learning rate is met under the key that refers to it, too.
        contains(&problem(PAIR_DPO, &[argument]), &[parts]);
    }
}

#[test]
fn our_own_files_stay_strict() {
    contains(&problem("seed: 1\ntraining: { steps: 3 }", &[]), &["training"]);
    contains(&problem("model: { showo: embedded }\ntraining: {}", &[]), &["training"]);
    contains(&problem("seed: 1", &["training.batch_size=3"]), &["training"]);
    let small = "training: { max_train_steps: 20 }\npretrained_model_path: m\nmodel: { vq: v, tokenizer: t }";
    assert_eq!(config(small, &[]).train.schedule.steps, 20);
}
