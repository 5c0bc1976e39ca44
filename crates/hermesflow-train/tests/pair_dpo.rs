//! Pair-DPO with a model that can be followed by hand: what it is asked, and what it learns.
#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor, Var};
use hermesflow_group::Group;
use hermesflow_models::{CaptionExample, ImageExample, ImageView, PairModel, Result, Scored};
use hermesflow_train::{
    CaptionMemory, LossKind, LossSettings, Masking, Objective, ObjectiveError, OwnImage, Pair, PairDpo,
    PairDpoSettings, PairWeights, Position, Schedule, ScheduleKind, Sides, StoredFeatures, Trainer, TrainerSettings,
    TrainingPair,
};

const CODES: usize = 8;
const TOKENS: usize = 16;

/// Every code and every letter has its own log-probability, the codes another one under a prompt.
#[derive(Clone)]
struct Unigram {
    letters: Var,
    codes: Var,
    prompted: Var,
    asked: Arc<Mutex<Asked>>,
}

#[derive(Default)]
struct Asked {
    captions: Vec<Vec<CaptionExample>>,
    images: Vec<Vec<ImageExample>>,
    guidance: Vec<f64>,
}

impl Unigram {
    fn new(start: f32) -> Self {
        let var = |slope: f32| {
            let values: Vec<f32> = (0..CODES).map(|code| start + slope * code as f32).collect();
            Var::new(values, &Device::Cpu).unwrap()
        };
        Self { letters: var(0.1), codes: var(-0.05), prompted: var(0.02), asked: Arc::default() }
    }

    fn values(&self) -> Vec<f32> {
        [&self.letters, &self.codes, &self.prompted].map(|var| var.to_vec1::<f32>().unwrap()).concat()
    }

    /// `counts [n, CODES]`, `scores [n or 1, CODES]` → `[n]`.
    fn sum(counts: Vec<[f32; CODES]>, scores: &Tensor) -> Result<Tensor> {
        let log_probs = scores.broadcast_sub(&scores.exp()?.sum_keepdim(1)?.log()?)?;
        let examples = counts.len();
        Ok(Tensor::from_vec(counts.concat(), (examples, CODES), &Device::Cpu)?.broadcast_mul(&log_probs)?.sum(1)?)
    }
}

fn counts(items: impl Iterator<Item = usize>) -> [f32; CODES] {
    let mut counts = [0.0; CODES];
    items.for_each(|item| counts[item % CODES] += 1.0);
    counts
}

/// The masked positions of an example.
fn masks(example: &ImageExample) -> &[u32] {
    match &example.scored {
        Scored::Masked(masked) => masked,
        other => panic!("this model scores masked positions, not {other:?}"),
    }
}

impl PairModel for Unigram {
    fn parameters(&self) -> Vec<(String, Var)> {
        [("codes", &self.codes), ("letters", &self.letters), ("prompted", &self.prompted)]
            .map(|(name, var)| (name.to_owned(), var.clone()))
            .to_vec()
    }

    fn caption_log_probs(&self, examples: &[CaptionExample]) -> Result<Tensor> {
        self.asked.lock().unwrap().captions.push(examples.to_vec());
        let counts = examples.iter().map(|example| counts(example.caption.bytes().map(usize::from))).collect();
        Self::sum(counts, &self.letters.unsqueeze(0)?)
    }

    fn image_log_probs(&self, examples: &[ImageExample], guidance: f64) -> Result<Tensor> {
        self.asked.lock().unwrap().images.push(examples.to_vec());
        self.asked.lock().unwrap().guidance.push(guidance);
        let masked = |example: &ImageExample| {
            counts(masks(example).iter().map(|&position| example.codes[position as usize] as usize))
        };
        let prompted: Vec<f32> = examples.iter().map(|example| if example.unconditional { 0.0 } else { 1.0 }).collect();
        // `(1+g)·(codes + prompted) − g·codes`.
        let prompted = Tensor::from_vec(prompted, (examples.len(), 1), &Device::Cpu)?
            .matmul(&self.prompted.unsqueeze(0)?)?
            .affine(1.0 + guidance, 0.0)?;
        Self::sum(examples.iter().map(masked).collect(), &prompted.broadcast_add(&self.codes)?)
    }

    fn image_logits(&self, examples: &[ImageExample]) -> Result<Tensor> {
        let rows = |example: &ImageExample| vec![if example.unconditional { 0.0 } else { 1.0 }; masks(example).len()];
        let prompted: Vec<f32> = examples.iter().flat_map(rows).collect();
        let prompted = Tensor::from_vec(prompted.clone(), (prompted.len(), 1), &Device::Cpu)?;
        Ok(prompted.matmul(&self.prompted.unsqueeze(0)?)?.broadcast_add(&self.codes)?)
    }

    fn describe(&self, _folder: &std::path::Path) -> Result<()> {
        Ok(())
    }
}

/// Winning captions and images are made of other letters and codes than losing ones.
fn pairs(count: usize) -> Vec<TrainingPair> {
    (0..count)
        .map(|index| TrainingPair {
            id: format!("r{index}"),
            image: vec![index as u32 % CODES as u32; TOKENS].into(),
            question: "Give a caption for this image.".into(),
            caption: format!("caption {index}"),
            caption_win: "abcab".into(),
            caption_lose: "defde".into(),
            image_win: (0..TOKENS as u32).map(|position| position % 4).collect(),
            image_lose: (0..TOKENS as u32).map(|position| 4 + (position + index as u32) % 4).collect(),
            margins: None,
            steps: None,
        })
        .collect()
}

/// An anchor on the images.
fn anchored() -> LossSettings {
    LossSettings { anchor_gen: 5.0, ..LossSettings::default() }
}

fn objective(settings: PairDpoSettings, count: usize) -> (PairDpo<Unigram>, Unigram, Unigram) {
    let (policy, reference) = (Unigram::new(0.0), Unigram::new(0.0));
    let pair_dpo = PairDpo::new(policy.clone(), reference.clone(), pairs(count), settings, |_, _| {}).unwrap();
    (pair_dpo, policy, reference)
}

fn at(step: usize) -> Position {
    Position { step, micro: 0, micros: 1 }
}

fn scalar(tensor: &Tensor) -> f32 {
    tensor.to_scalar().unwrap()
}

#[test]
fn a_fresh_policy_starts_at_two_ln_two() {
    for lambda in [0.0, 5.0] {
        let loss = LossSettings { anchor_und: lambda, anchor_gen: lambda, ..LossSettings::default() };
        let settings = PairDpoSettings { loss, ..PairDpoSettings::default() };
        let (mut pair_dpo, ..) = objective(settings, 6);
        let step = pair_dpo.micro_batch(at(0)).unwrap();
        assert_eq!(scalar(&step.loss().unwrap()), 2.0 * std::f32::consts::LN_2);
        assert_eq!(step.metrics.get("gen/rewards/margins"), Some(0.0));
        assert_eq!(step.metrics.get("und/delta/chosen"), Some(0.0));
        assert!(step.metrics.get("und/logps/chosen").unwrap() < -1.0);
    }
}

/// By margin a pair counts by the difference of its scores over their mean, each side by its own.
#[test]
fn pairs_count_by_their_margins() {
    let mut pairs = pairs(4);
    for (pair, margin) in pairs.iter_mut().zip([0.1, 0.1, 0.3, 0.3]) {
        pair.margins = Some([margin, 0.5]);
    }
    let settings = PairDpoSettings { batch_size: 1, weights: PairWeights::Margin, ..PairDpoSettings::default() };
    let models = || (Unigram::new(0.0), Unigram::new(0.0));
    let new = |pairs: Vec<TrainingPair>, sides| {
        let settings = PairDpoSettings { sides, ..settings };
        PairDpo::new(models().0, models().1, pairs, settings, |_, _| {})
    };
    let mut pair_dpo = new(pairs.clone(), Sides::Both).unwrap();
    let mut losses: Vec<f32> =
        (0..4).map(|step| scalar(&pair_dpo.micro_batch(at(step)).unwrap().loss().unwrap())).collect();
    losses.sort_by(f32::total_cmp);
    for (loss, weight) in losses.iter().zip([1.5, 1.5, 2.5, 2.5]) {
        assert!((loss - weight * std::f32::consts::LN_2).abs() < 1e-6, "{losses:?}");
    }
    pairs[1].margins = Some([-0.1, 0.5]);
    let said = new(pairs.clone(), Sides::Both).err().unwrap().to_string();
    assert!(said.contains("r1") && said.contains("-0.1"), "{said}");
    pairs.iter_mut().for_each(|pair| pair.margins = Some([0.0, 0.5]));
    assert!(new(pairs.clone(), Sides::Both).err().unwrap().to_string().contains("no pair of captions differs"));
    assert!(new(pairs.clone(), Sides::Gen).is_ok());
    pairs[2].margins = None;
    assert!(new(pairs, Sides::Gen).err().unwrap().to_string().contains("r2"));
}

#[test]
fn a_pair_whose_win_is_its_lose_costs_two_ln_two_however_far_the_policy_has_moved() {
    let mut same = pairs(4);
    for pair in &mut same {
        pair.caption_lose = pair.caption_win.clone();
        pair.image_lose = pair.image_win.clone();
    }
    let settings = PairDpoSettings::default();
    let mut pair_dpo = PairDpo::new(Unigram::new(0.0), Unigram::new(3.0), same, settings, |_, _| {}).unwrap();
    for (_, var) in pair_dpo.parameters() {
        var.set(&(var.as_tensor() * 7.0).unwrap()).unwrap();
    }
    assert_eq!(scalar(&pair_dpo.micro_batch(at(3)).unwrap().loss().unwrap()), 2.0 * std::f32::consts::LN_2);
}

/// Runs `work` on one thread, so that the parts of a batch follow each other and what was asked has an order.
fn in_order<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(work)
}

#[test]
fn win_and_lose_share_one_call_one_mask_and_one_prompt() {
    share_everything(Masking::default());
}

#[test]
fn so_they_do_under_other_masks() {
    let mask_schedule = "linear".parse().unwrap();
    share_everything(Masking { mask_schedule, min_masking_rate: 0.2, mask_contiguous_region_prob: 0.5 });
}

fn share_everything(masking: Masking) {
    let settings = PairDpoSettings { prompt_dropout: 0.5, masking, ..PairDpoSettings::default() };
    let (mut pair_dpo, policy, reference) = objective(settings, 10);
    in_order(|| (0..5).for_each(|step| drop(pair_dpo.micro_batch(at(step)).unwrap())));
    let asked = policy.asked.lock().unwrap();
    assert_eq!((asked.captions.len(), asked.images.len()), (10, 10), "one call per side and two pairs");
    let mut dropped = 0;
    for examples in &asked.images {
        let (wins, loses) = examples.split_at(2);
        for (win, lose) in wins.iter().zip(loses) {
            assert_eq!((&win.scored, &win.prompt), (&lose.scored, &lose.prompt));
            assert_eq!(win.unconditional, lose.unconditional);
            assert!(masks(win).len() as f64 >= (masking.min_masking_rate * TOKENS as f64).round());
            assert!(win.codes.iter().all(|code| *code < 4) && lose.codes.iter().all(|code| *code >= 4));
            dropped += usize::from(win.unconditional);
        }
    }
    assert!((4..=16).contains(&dropped), "{dropped} of 20 prompts are dropped");
    // Both halves of a pair are one record's.
    for (captions, images) in asked.captions.iter().zip(&asked.images) {
        for (caption, image) in captions.iter().zip(images) {
            let record: u32 = image.prompt.trim_start_matches("caption ").parse().unwrap();
            assert_eq!(caption.image, ImageView::Codes(vec![record % CODES as u32; TOKENS]));
            assert_eq!(caption.question, "Give a caption for this image.");
        }
    }
    // The reference saw each caption once, at the start, and the very same images.
    let known = reference.asked.lock().unwrap();
    assert_eq!(known.captions.iter().map(Vec::len).sum::<usize>(), 20);
    assert_eq!(known.images, asked.images);
}

#[test]
fn an_epoch_sees_every_pair_once_and_a_step_can_be_repeated_alone() {
    let (mut pair_dpo, policy, _) = objective(PairDpoSettings { prompt_dropout: 0.0, ..PairDpoSettings::default() }, 8);
    in_order(|| (0..4).for_each(|step| drop(pair_dpo.micro_batch(at(step)).unwrap())));
    // Two pairs a call, two calls a step, two steps an epoch.
    let run: Vec<Vec<ImageExample>> = policy.asked.lock().unwrap().images.clone();
    for epoch in run.chunks(4) {
        let mut prompts: Vec<&str> = epoch.iter().flat_map(|call| &call[..2]).map(|e| e.prompt.as_str()).collect();
        prompts.sort_unstable();
        prompts.dedup();
        assert_eq!(prompts.len(), 8);
    }
    let mask = |epoch: usize| {
        let mut wins = run[4 * epoch..4 * epoch + 4].iter().flat_map(|call| &call[..2]);
        wins.find(|example| example.prompt == "caption 3").unwrap().scored.clone()
    };
    assert_ne!(mask(0), mask(1), "a pair gets a fresh mask every time");
    in_order(|| drop(pair_dpo.micro_batch(at(1)).unwrap()));
    assert_eq!(policy.asked.lock().unwrap().images[8..], run[2..4]);
    assert_eq!((pair_dpo.epoch(at(0)), pair_dpo.epoch(at(3))), (0.0, 1.5));
}

#[test]
fn training_orders_the_pairs_moves_every_parameter_and_no_reference() {
    let folder = tempfile::tempdir().unwrap();
    let (pair_dpo, policy, reference) = objective(PairDpoSettings::default(), 6);
    let (before, frozen) = (policy.values(), reference.values());
    let schedule = Schedule { kind: ScheduleKind::Constant, learning_rate: 0.05, warmup_steps: 0, steps: 30 };
    let mut records = Vec::new();
    Trainer::new(pair_dpo, TrainerSettings::new(schedule), folder.path())
        .unwrap()
        .run(|report| {
            records.push(report.record.clone());
            ControlFlow::Continue(())
        })
        .unwrap();
    let (first, last) = (&records[0], &records[29]);
    assert!(last.loss < 0.5 * first.loss, "{} against {}", last.loss, first.loss);
    for side in ["und", "gen"] {
        let get = |name: &str| last.metrics.get(&format!("{side}/{name}")).unwrap();
        assert_eq!(get("rewards/accuracies"), 1.0);
        assert!(get("delta/chosen") > 0.0 && get("delta/rejected") < 0.0);
        assert!((get("rewards/margins") - (get("rewards/chosen") - get("rewards/rejected"))).abs() < 1e-5);
    }
    assert!(before.iter().zip(policy.values()).all(|(a, b)| *a != b));
    assert_eq!(frozen, reference.values());
}

#[test]
fn a_batch_of_4_is_4_micro_batches_of_1() {
    let run = |batch_size: usize, accumulation: usize| {
        let folder = tempfile::tempdir().unwrap();
        let settings = PairDpoSettings { batch_size, loss: anchored(), ..PairDpoSettings::default() };
        let (pair_dpo, policy, _) = objective(settings, 6);
        let schedule = Schedule { kind: ScheduleKind::Linear, learning_rate: 0.05, warmup_steps: 1, steps: 8 };
        let settings = TrainerSettings { accumulation, ..TrainerSettings::new(schedule) };
        Trainer::new(pair_dpo, settings, folder.path()).unwrap().run(|_| ControlFlow::Continue(())).unwrap();
        policy.values()
    };
    for (a, b) in run(4, 1).iter().zip(run(1, 4)) {
        assert!((a - b).abs() < 1e-5, "{a} against {b}");
    }
}

#[test]
fn a_killed_and_resumed_alignment_is_the_uninterrupted_one() {
    let run = |folder: &std::path::Path, until: usize| {
        let (pair_dpo, policy, _) = objective(PairDpoSettings { loss: anchored(), ..PairDpoSettings::default() }, 6);
        let schedule = Schedule { kind: ScheduleKind::Cosine, learning_rate: 0.05, warmup_steps: 1, steps: 11 };
        let settings = TrainerSettings { checkpoint_every: 3, ..TrainerSettings::new(schedule) };
        Trainer::new(pair_dpo, settings, folder)
            .unwrap()
            .run(|report| if report.record.step == until { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            .unwrap();
        (policy.values(), std::fs::read(folder.join("metrics.jsonl")).unwrap())
    };
    let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = run(whole.path(), 11);
    for until in [2, 5, 8] {
        assert_ne!(run(killed.path(), until), expected);
    }
    assert_eq!(run(killed.path(), 11), expected);
}

#[test]
fn a_run_goes_on_with_its_own_pairs_only() {
    let folder = tempfile::tempdir().unwrap();
    let run = |pairs: Vec<TrainingPair>| {
        let (policy, reference) = (Unigram::new(0.0), Unigram::new(0.0));
        let pair_dpo = PairDpo::new(policy, reference, pairs, PairDpoSettings::default(), |_, _| {}).unwrap();
        let schedule = Schedule { kind: ScheduleKind::Constant, learning_rate: 0.05, warmup_steps: 0, steps: 3 };
        let settings = TrainerSettings { checkpoint_every: 1, ..TrainerSettings::new(schedule) };
        let mut trainer = Trainer::new(pair_dpo, settings, folder.path()).map_err(|error| error.to_string())?;
        trainer.run(|_| ControlFlow::Break(())).map_err(|error| error.to_string())
    };
    run(pairs(6)).unwrap();
    let changes: [fn(&mut TrainingPair); 8] = [
        |pair| pair.id.push('x'),
        |pair| pair.image = vec![7; TOKENS].into(),
        |pair| pair.question.push('?'),
        |pair| pair.caption.push('x'),
        |pair| pair.caption_win.push('a'),
        |pair| pair.caption_lose.push('a'),
        |pair| pair.image_win[3] += 1,
        |pair| pair.image_lose[3] -= 1,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut other = pairs(6);
        change(&mut other[2]);
        let message = run(other).unwrap_err();
        assert!(message.contains("pairs_hash"), "{number}: {message}");
    }
    run(pairs(6)).unwrap();
}

#[test]
fn one_side_alone_asks_for_nothing_of_the_other() {
    for (sides, captions, images) in [(Sides::Und, 2, 0), (Sides::Gen, 0, 2)] {
        let (mut pair_dpo, policy, _) = objective(PairDpoSettings { sides, ..PairDpoSettings::default() }, 6);
        let step = pair_dpo.micro_batch(at(0)).unwrap();
        assert_eq!(scalar(&step.loss().unwrap()), std::f32::consts::LN_2);
        let asked = policy.asked.lock().unwrap();
        assert_eq!((asked.captions.len(), asked.images.len()), (captions, images));
        assert_eq!(step.metrics.get("gen/loss").is_some(), images > 0);
    }
}

#[test]
fn sft_wins_raises_the_wins_and_pulls_as_hard_as_the_first_step_of_pair_dpo() {
    let gradient = |objective_kind: LossKind| {
        let settings = PairDpoSettings {
            objective: objective_kind,
            batch_size: 6,
            sides: Sides::Und,
            ..PairDpoSettings::default()
        };
        let (mut pair_dpo, policy, _) = objective(settings, 6);
        let gradients = pair_dpo.micro_batch(at(0)).unwrap().loss().unwrap().backward().unwrap();
        gradients.get(&policy.letters).unwrap().to_vec1::<f32>().unwrap()
    };
    let (sft, dpo) = (gradient(LossKind::SftWins), gradient(LossKind::PairDpo));
    // Letters a, b, c are codes 1, 2, 3: 'a' occurs twice in the win and never in the loss of 5 letters,
    // where both captions have equal weight and the softmax terms cancel in the comparison: β/2 · 2.
    assert!((dpo[1] + 0.2).abs() < 1e-6, "{dpo:?}");
    // For the likelihood alone the softmax term stays: β/2 · (2 − 5·p(a)).
    let scores: Vec<f32> = Unigram::new(0.0).letters.to_vec1().unwrap();
    let p = scores[1].exp() / scores.iter().map(|score| score.exp()).sum::<f32>();
    assert!((sft[1] + 0.1 * (2.0 - 5.0 * p)).abs() < 1e-6, "{sft:?}");
}

#[derive(Default)]
struct Memory(Vec<(Vec<String>, Vec<Pair<f32>>)>);

fn ids(pairs: &[&TrainingPair]) -> Vec<String> {
    pairs.iter().map(|pair| pair.id.clone()).collect()
}

impl CaptionMemory for Memory {
    fn recall(&mut self, pairs: &[&TrainingPair]) -> Option<Vec<Pair<f32>>> {
        self.0.iter().find(|(known, _)| *known == ids(pairs)).map(|(_, said)| said.clone())
    }

    fn knows(&self, pairs: &[&TrainingPair]) -> bool {
        self.0.iter().any(|(known, _)| *known == ids(pairs))
    }

    fn remember(&mut self, pairs: &[&TrainingPair], said: &[Pair<f32>]) -> std::result::Result<(), ObjectiveError> {
        self.0.push((ids(pairs), said.to_vec()));
        Ok(())
    }
}

#[test]
fn a_reference_is_asked_once_about_captions_and_never_where_it_is_remembered() {
    let settings = PairDpoSettings { batch_size: 2, ..PairDpoSettings::default() };
    let mut memory = Memory::default();
    let mut run = |remember: bool| {
        let (policy, reference) = (Unigram::new(0.3), Unigram::new(0.0));
        let (mut done, pairs) = (0, pairs(6));
        let mut pair_dpo = if remember {
            PairDpo::remembering(policy, reference.clone(), pairs, settings, &mut memory, &Group::alone(), |now, _| {
                done = now
            })
        } else {
            PairDpo::new(policy, reference.clone(), pairs, settings, |now, _| done = now)
        }
        .unwrap();
        // Two epochs.
        let metrics: Vec<String> =
            (0..6).map(|step| format!("{:?}", pair_dpo.micro_batch(at(step)).unwrap().metrics)).collect();
        assert_eq!(done, 6);
        let asked = reference.asked.lock().unwrap().captions.len();
        (metrics, asked)
    };
    let (plain, asked) = run(false);
    assert_eq!(asked, 3, "three chunks, and none in the second epoch");
    assert_eq!(run(true), (plain.clone(), 3));
    assert_eq!(run(true), (plain, 0));
}

#[test]
fn several_masks_are_averaged_before_the_comparison() {
    let settings =
        PairDpoSettings { masks_per_pair: 3, batch_size: 2, sides: Sides::Gen, ..PairDpoSettings::default() };
    let (mut pair_dpo, policy, _) = objective(settings, 6);
    policy.codes.set(&(policy.codes.as_tensor() * -6.0).unwrap()).unwrap();
    let step = pair_dpo.micro_batch(at(0)).unwrap();
    let examples = policy.asked.lock().unwrap().images[0].clone();
    assert_eq!(examples.len(), 2 * 2 * 3);
    let alone = |example: &ImageExample| {
        f64::from(policy.image_log_probs(std::slice::from_ref(example), 0.0).unwrap().to_vec1::<f32>().unwrap()[0])
    };
    let wins: f64 = examples[..6].iter().map(alone).sum::<f64>() / 6.0;
    assert!((step.metrics.get("gen/logps/chosen").unwrap() - wins).abs() < 1e-4);
    assert_ne!(masks(&examples[0]).len(), masks(&examples[2]).len());
}

#[test]
fn guidance_scores_the_images_of_policy_and_reference_alike() {
    let settings = PairDpoSettings { guidance: 2.0, prompt_dropout: 0.0, ..PairDpoSettings::default() };
    let (mut pair_dpo, policy, reference) = objective(settings, 6);
    let step = pair_dpo.micro_batch(at(0)).unwrap();
    for model in [&policy, &reference] {
        let asked = model.asked.lock().unwrap();
        assert!(!asked.guidance.is_empty() && asked.guidance.iter().all(|guidance| *guidance == 2.0));
    }
    assert_eq!(step.metrics.get("gen/delta/chosen"), Some(0.0));
    let unguided = PairDpoSettings { guidance: 0.0, ..settings };
    let (mut without, ..) = objective(unguided, 6);
    let chosen = |step: &hermesflow_train::Step| step.metrics.get("gen/logps/chosen").unwrap();
    assert_ne!(chosen(&step), chosen(&without.micro_batch(at(0)).unwrap()));
    assert_ne!(pair_dpo.settings(), without.settings(), "a run goes on under its own guidance only");
}

#[test]
fn unusable_pairs_and_settings_are_named() {
    let build = |pairs, settings| PairDpo::new(Unigram::new(0.0), Unigram::new(0.0), pairs, settings, |_, _| {});
    let mut short = pairs(3);
    short[1].image_lose.pop();
    let error = build(short, PairDpoSettings::default()).err().unwrap().to_string();
    assert!(error.contains("training pair r1") && error.contains("16 codes, the losing one 15"), "{error}");
    assert!(build(Vec::new(), PairDpoSettings::default()).is_err());
    let loss = LossSettings { beta: 0.0, ..LossSettings::default() };
    let error = build(pairs(3), PairDpoSettings { loss, ..PairDpoSettings::default() }).err().unwrap();
    assert!(error.to_string().contains("`loss.beta`: 0 is not above 0"), "{error}");
    let settings = PairDpoSettings { prompt_dropout: 1.5, ..PairDpoSettings::default() };
    assert!(build(pairs(3), settings).is_err());
    let settings = PairDpoSettings { guidance: 1.0, ..PairDpoSettings::default() };
    let error = build(pairs(3), settings).err().unwrap().to_string();
    assert!(error.contains("`prompt_dropout`") && error.contains("under guidance"), "{error}");
    let settings = PairDpoSettings { guidance: -1.0, prompt_dropout: 0.0, ..PairDpoSettings::default() };
    assert!(build(pairs(3), settings).err().unwrap().to_string().contains("`guidance`"));
    let masking = Masking { min_masking_rate: 1.5, ..Masking::default() };
    let error = build(pairs(3), PairDpoSettings { masking, ..PairDpoSettings::default() }).err().unwrap();
    assert!(error.to_string().contains("`masking.min_masking_rate`"), "{error}");
}

/// Scores every position, and reads features.
#[derive(Clone)]
struct Exact(Unigram);

impl PairModel for Exact {
    fn parameters(&self) -> Vec<(String, Var)> {
        self.0.parameters()
    }

    fn scores_all(&self) -> bool {
        true
    }

    fn caption_log_probs(&self, examples: &[CaptionExample]) -> Result<Tensor> {
        self.0.caption_log_probs(examples)
    }

    fn image_log_probs(&self, examples: &[ImageExample], guidance: f64) -> Result<Tensor> {
        let whole = |example: &ImageExample| {
            assert_eq!(example.scored, Scored::All);
            ImageExample { scored: Scored::Masked((0..TOKENS as u32).collect()), ..example.clone() }
        };
        self.0.image_log_probs(&examples.iter().map(whole).collect::<Vec<_>>(), guidance)
    }

    fn image_logits(&self, examples: &[ImageExample]) -> Result<Tensor> {
        let whole = |example: &ImageExample| {
            assert_eq!(example.scored, Scored::All);
            ImageExample { scored: Scored::Masked((0..TOKENS as u32).collect()), ..example.clone() }
        };
        self.0.image_logits(&examples.iter().map(whole).collect::<Vec<_>>())
    }

    fn describe(&self, _folder: &std::path::Path) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_model_that_scores_all_positions_gets_no_masks_and_features_are_read_once_for_win_and_lose() {
    let mut stored = pairs(6);
    for pair in &mut stored {
        let number: f32 = pair.id[1..].parse().unwrap();
        let load = move || Ok(Tensor::full(number, (2, 3), &Device::Cpu)?);
        pair.image = OwnImage::Features(StoredFeatures::new(pair.id.clone(), load));
    }
    let (policy, reference) = (Exact(Unigram::new(0.0)), Exact(Unigram::new(0.0)));
    let settings = PairDpoSettings { masks_per_pair: 3, prompt_dropout: 0.0, ..PairDpoSettings::default() };
    let mut exact = PairDpo::new(policy.clone(), reference, stored.clone(), settings, |_, _| {}).unwrap();
    let step = exact.micro_batch(at(0)).unwrap();
    assert_eq!(step.metrics.get("gen/delta/chosen"), Some(0.0));
    let asked = policy.0.asked.lock().unwrap();
    assert_eq!(asked.images.iter().map(Vec::len).sum::<usize>(), 2 * 4, "one score per image");
    for examples in &asked.captions {
        let (wins, loses) = examples.split_at(2);
        assert!(wins.iter().zip(loses).all(|(win, lose)| win.image == lose.image && win.caption != lose.caption));
        assert!(wins[0].image != wins[1].image);
    }
    drop(asked);
    let mut other = stored.clone();
    other[1].image = OwnImage::Features(StoredFeatures::new("others".into(), || Err("gone".into())));
    let settings = PairDpoSettings { batch_size: 6, ..settings };
    let new = || Exact(Unigram::new(0.0));
    let hash = |pairs: &[TrainingPair]| {
        let settings = PairDpoSettings { sides: Sides::Gen, ..settings };
        PairDpo::new(new(), new(), pairs.to_vec(), settings, |_, _| {}).unwrap().settings()["pairs_hash"].clone()
    };
    assert_ne!(hash(&stored), hash(&other), "a run goes on with its own features only");
    let said = PairDpo::new(new(), new(), other, settings, |_, _| {}).err().unwrap().to_string();
    assert!(said.contains("features") && said.contains("gone"), "{said}");
}
