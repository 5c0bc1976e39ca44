//! Pair-DPO as an [`Objective`]: which pairs a step sees, what is drawn at random for them, and the model's
//! log-probabilities of both sides.
//!
//! 1. Both halves of a pair come from one record; the released code shuffled captions and images separately.
//! 2. Masks and prompt dropout are drawn once per pair and step and apply to win and lose alike; the released code drew
//!    the dropout twice.
//! 3. Each side is one call to the model per micro batch (per two pairs for a small model), winners before losers.
//! 4. The reference's log-probabilities of captions involve no randomness, so they are computed once, when the run
//!    starts, or recalled from a [`CaptionMemory`]. They are computed in the same groups of pairs as the first
//!    epoch's steps, also when a run is resumed, so that a policy that still equals its reference differs from it by
//!    exactly zero. The reference's log-probabilities of images depend on each step's masks and are computed in
//!    every step.
//! 5. `masks_per_pair` > 1 (an extension; the paper uses 1) averages log π(image) over several masks before the σ. This
//!    lowers the variance of a step and costs as many passes.
//! 6. `guidance` > 0 (an extension; the paper uses 0) takes for log π(image) the log-probability of the policy that draws
//!    under this guidance, for the policy and the reference alike, so that what is trained is what draws. Training without
//!    guidance a model that is drawn from under guidance sharpens it twice.
//! 7. `masks: visited` (an extension; the paper draws masks at random) scores images in the states that the sampler visited
//!    when it drew them ([`crate::states`]).
//! 8. A model that generates one code after the other scores all positions of an image, exactly: for it no masks are drawn.

use std::path::Path;

use candle_core::{Device, Tensor};
use hermesflow_group::Group;
use hermesflow_models::{CaptionExample, ImageExample, ImageView, PairModel, Scored};
use hermesflow_nn::parallel;
use serde_json::{Value, json};

use crate::checkpoint;
use crate::divergence::{Divergence, divergence};
use crate::draws::{ImageDraw, Order};
use crate::loss::{Pair, PairLogProbs, SideLoss, total};
use crate::metrics::Metrics;
pub use crate::pair_settings::{PairDpoSettings, PairWeights, Sides};
use crate::states;
use crate::trainer::{Objective, ObjectiveError, PartLoss, Position, Sharing, Step};
pub use crate::training_pair::TrainingPair;
use crate::training_pair::{by_margin, check};
use crate::{Error, Result};

/// A store for the reference's log-probabilities of captions, so that a run that is started again need not compute
/// them.
///
/// Pairs are looked up and stored in the groups in which they are computed, because a number may round differently in
/// another group.
pub trait CaptionMemory {
    /// The stored log-probabilities of these pairs' captions under exactly this reference, one per pair in order;
    /// `None` if they are not stored.
    fn recall(&mut self, pairs: &[&TrainingPair]) -> Option<Vec<Pair<f32>>>;

    /// Whether [`Self::recall`] would return them.
    fn knows(&self, pairs: &[&TrainingPair]) -> bool;

    /// Stores the log-probabilities of these pairs' captions, one per pair in order.
    ///
    /// # Errors
    /// If they cannot be stored.
    fn remember(&mut self, pairs: &[&TrainingPair], log_probs: &[Pair<f32>])
    -> std::result::Result<(), ObjectiveError>;
}

/// A [`CaptionMemory`] that stores nothing.
struct Forgetful;

impl CaptionMemory for Forgetful {
    fn recall(&mut self, _: &[&TrainingPair]) -> Option<Vec<Pair<f32>>> {
        None
    }

    fn knows(&self, _: &[&TrainingPair]) -> bool {
        false
    }

    fn remember(&mut self, _: &[&TrainingPair], _: &[Pair<f32>]) -> std::result::Result<(), ObjectiveError> {
        Ok(())
    }
}

/// Pair-DPO of a policy against a reference over prepared pairs.
pub struct PairDpo<M> {
    policy: M,
    reference: M,
    pairs: Vec<TrainingPair>,
    settings: PairDpoSettings,
    order: Order,
    /// Pairs that are computed together; a micro batch of a small model is several such parts, in parallel.
    part: usize,
    /// For each pair, log π_ref of its winning and losing caption; empty if captions take no part.
    reference_captions: Vec<Pair<f32>>,
    /// For each pair, the weights of its captions' and its images' loss, where they are not all one.
    weights: Option<Vec<[f32; 2]>>,
}

impl<M: PairModel> PairDpo<M> {
    /// The objective of training `policy` against a frozen `reference`. Load the reference without trainable variables,
    /// so that no graph is kept for it.
    ///
    /// If captions take part, this computes the reference's log-probabilities of all captions and calls
    /// `on_reference(done, all)` as it goes on.
    ///
    /// # Errors
    /// If a setting is out of range, there are no pairs, a pair lacks the codes of an image that takes part, or the
    /// model fails.
    pub fn new(
        policy: M,
        reference: M,
        pairs: Vec<TrainingPair>,
        settings: PairDpoSettings,
        on_reference: impl FnMut(usize, usize),
    ) -> Result<Self> {
        Self::remembering(policy, reference, pairs, settings, &mut Forgetful, &Group::alone(), on_reference)
    }

    /// Like [`Self::new`], but takes the reference's log-probabilities of captions from `memory` where it has them, and
    /// shares the computation of the others out to the processes of a group.
    ///
    /// # Errors
    /// As [`Self::new`], if `memory` cannot store new values, or another process is gone.
    pub fn remembering(
        policy: M,
        reference: M,
        pairs: Vec<TrainingPair>,
        settings: PairDpoSettings,
        memory: &mut impl CaptionMemory,
        group: &Group,
        mut on_reference: impl FnMut(usize, usize),
    ) -> Result<Self> {
        settings.validate()?;
        if pairs.is_empty() {
            return Err(Error::Setting { key: "pairs", problem: "there is no pair to train on".into() });
        }
        let masked = !policy.scores_all();
        pairs.iter().try_for_each(|pair| check(pair, &settings, masked))?;
        let size: usize = policy.parameters().iter().map(|(_, parameter)| parameter.elem_count()).sum();
        let part = settings.part(size);
        let mut order = Order::new(settings.seed, pairs.len());
        let mut reference_captions = Vec::new();
        if settings.sides.understanding() {
            let first_epoch: Vec<usize> = (0..pairs.len() as u64).map(|number| order.index(number)).collect();
            reference_captions = vec![Pair { win: 0.0, lose: 0.0 }; pairs.len()];
            let mut done = 0;
            let groups: Vec<&[usize]> =
                first_epoch.chunks(settings.batch_size).flat_map(|batch| batch.chunks(part)).collect();
            let named = |indices: &[usize]| -> Vec<&TrainingPair> { indices.iter().map(|&at| &pairs[at]).collect() };
            // A round gives every process one group, and what it does not know is computed.
            for round in groups.chunks(group.size()) {
                let mine = round.get(group.rank()).map(|indices| named(indices));
                let new = mine.filter(|mine| !memory.knows(mine)).map(|mine| ask(&reference, &mine)).transpose()?;
                let new = group.gather(&as_bytes(&new.unwrap_or_default()))?;
                for (indices, new) in round.iter().zip(new) {
                    let chunk = named(indices);
                    let known = match memory.recall(&chunk).filter(|known| known.len() == chunk.len()) {
                        Some(known) => known,
                        None => {
                            let new = from_bytes(&new);
                            memory.remember(&chunk, &new).map_err(Error::Memory)?;
                            new
                        }
                    };
                    for (&index, known) in indices.iter().zip(known) {
                        reference_captions[index] = known;
                    }
                    done += chunk.len();
                    on_reference(done, pairs.len());
                }
            }
        }
        let weights = match settings.weights {
            PairWeights::Equal => None,
            PairWeights::Margin => Some(by_margin(&pairs, settings.sides)?),
        };
        Ok(Self { part, policy, reference, pairs, settings, order, reference_captions, weights })
    }

    /// The model that is trained.
    pub fn policy(&self) -> &M {
        &self.policy
    }

    /// The trained model and the reference.
    pub fn into_models(self) -> (M, M) {
        (self.policy, self.reference)
    }

    /// The log-probabilities of the captions of the pairs at `indices`.
    fn understanding(&self, indices: &[usize]) -> Result<PairLogProbs> {
        let pairs: Vec<&TrainingPair> = indices.iter().map(|&index| &self.pairs[index]).collect();
        let policy = captions(&self.policy, &pairs)?;
        let known = |of: fn(&Pair<f32>) -> f32| {
            let values: Vec<f32> = indices.iter().map(|&index| of(&self.reference_captions[index])).collect();
            Tensor::new(values, policy.win.device())
        };
        let reference = Pair { win: known(|pair| pair.win)?, lose: known(|pair| pair.lose)? };
        Ok(PairLogProbs { policy, reference })
    }

    /// The log-probabilities of the images of the pairs at `indices`, with the masks and dropout of `draws`.
    fn generation(&self, indices: &[usize], draws: &[ImageDraw]) -> Result<PairLogProbs> {
        let pairs: Vec<&TrainingPair> = indices.iter().map(|&index| &self.pairs[index]).collect();
        let policy = images(&self.policy, &pairs, draws, self.settings.guidance)?;
        let reference = images(&self.reference, &pairs, draws, self.settings.guidance)?;
        Ok(PairLogProbs { policy, reference: Pair { win: reference.win.detach(), lose: reference.lose.detach() } })
    }

    /// How far the images of the pairs at `indices` have moved from the reference's; none where the loss does not ask.
    fn divergence(&self, indices: &[usize], draws: &[ImageDraw], numbers: &[u64]) -> Result<Option<Divergence>> {
        if self.settings.loss.kl == 0.0 {
            return Ok(None);
        }
        let pairs: Vec<&TrainingPair> = indices.iter().map(|&index| &self.pairs[index]).collect();
        divergence(&self.policy, &self.reference, &pairs, draws, numbers).map(Some)
    }

    /// Some parts of a micro batch, counted from 0: the numbers of both sides, and the losses.
    fn compute(&mut self, at: Position, parts: &[usize]) -> Result<Vec<Computed>> {
        let settings = self.settings;
        let masks = if self.policy.scores_all() { 0 } else { settings.masks_per_pair };
        let numbers: Vec<u64> = (0..settings.batch_size).map(|index| at.example(index, settings.batch_size)).collect();
        let indices: Vec<usize> = numbers.iter().map(|&number| self.order.index(number)).collect();
        let draws: Vec<ImageDraw> = numbers
            .iter()
            .zip(&indices)
            .map(|(&number, &index)| states::draw(&settings, number, self.pairs[index].image_win.len(), masks))
            .collect();
        let all: Vec<_> =
            indices.chunks(self.part).zip(draws.chunks(self.part).zip(numbers.chunks(self.part))).collect();
        let parts: Vec<_> = parts.iter().filter_map(|part| all.get(*part).copied()).collect();
        let found = parallel::map(true, &parts, |(indices, (draws, numbers))| {
            Ok::<_, Error>((self.log_probs(indices, draws)?, self.divergence(indices, draws, numbers)?))
        });
        let mut computed = Vec::with_capacity(parts.len());
        for (found, (indices, _)) in found.into_iter().zip(parts) {
            let (log_probs, apart) = found?;
            let mut weighted = Vec::new();
            for (side, (log_probs, terms)) in log_probs.iter().zip(settings.loss.sides()).enumerate() {
                if let Some(log_probs) = log_probs {
                    let own = settings.objective.side(log_probs, terms)?;
                    weighted.push((terms.weight, self.weighted(own, side, indices)?));
                }
            }
            let weighted: Vec<_> = weighted.iter().map(|(weight, side)| (*weight, side)).collect();
            // The part's mean over its own pairs, weighted by its share of the batch.
            let share = indices.len() as f64 / settings.batch_size as f64;
            let mut loss = total(&weighted)?;
            if let (Some(before), Some(apart)) = (&loss, &apart) {
                loss = Some((before + apart.loss.mean_all()?.affine(settings.loss.kl, 0.0)?)?);
            }
            if let Some(loss) = loss {
                let numbers = Numbers { log_probs, apart: apart.map(|apart| apart.parts) };
                computed.push(Computed { numbers, loss: loss.affine(share, 0.0)? });
            }
        }
        Ok(computed)
    }

    /// The metrics of a micro batch, from the numbers of all its parts.
    fn metrics_of(&self, parts: &[&Numbers]) -> Result<Metrics> {
        let PairDpoSettings { objective, loss, .. } = self.settings;
        let mut metrics = Metrics::new();
        for (side, (name, terms)) in ["und", "gen"].into_iter().zip(loss.sides()).enumerate() {
            let log_probs: Vec<&PairLogProbs> = parts.iter().filter_map(|part| part.log_probs[side].as_ref()).collect();
            if !log_probs.is_empty() {
                let log_probs = PairLogProbs::detached(&log_probs)?;
                metrics.insert_side(name, &log_probs, &objective.side(&log_probs, terms)?)?;
            }
        }
        let apart: Vec<&[Vec<f32>; 2]> = parts.iter().filter_map(|part| part.apart.as_ref()).collect();
        if !apart.is_empty() {
            Divergence::insert(&apart, &mut metrics);
        }
        Ok(metrics)
    }

    fn loss(&mut self, at: Position) -> Result<Step> {
        let all: Vec<usize> = (0..self.parts()).collect();
        let computed = self.compute(at, &all)?;
        let metrics = self.metrics_of(&computed.iter().map(|part| &part.numbers).collect::<Vec<_>>())?;
        Ok(Step { losses: computed.into_iter().map(|part| part.loss).collect(), metrics })
    }

    /// What [`Numbers::note`] noted of a part.
    fn noted(&self, note: &[f32]) -> Result<Numbers> {
        let device = self.policy.parameters().first().map_or(Device::Cpu, |(_, var)| var.device().clone());
        let (sides, is_held) = (self.settings.sides, self.settings.loss.kl != 0.0);
        let columns =
            4 * (usize::from(sides.understanding()) + usize::from(sides.generation())) + 2 * usize::from(is_held);
        let pairs = note.len() / columns.max(1);
        let mut columns = note.chunks_exact(pairs.max(1));
        let mut side = |takes_part: bool| -> Result<Option<PairLogProbs>> {
            if !takes_part {
                return Ok(None);
            }
            let mut column = || Tensor::new(columns.next().unwrap_or_default(), &device);
            let policy = Pair { win: column()?, lose: column()? };
            Ok(Some(PairLogProbs { policy, reference: Pair { win: column()?, lose: column()? } }))
        };
        let log_probs = [side(sides.understanding())?, side(sides.generation())?];
        let mut column = || columns.next().unwrap_or_default().to_vec();
        Ok(Numbers { log_probs, apart: is_held.then(|| [column(), column()]) })
    }

    /// The loss of one side (0: captions, 1: images), in which each pair counts as `settings.weights` says.
    fn weighted(&self, side: SideLoss, number: usize, indices: &[usize]) -> Result<SideLoss> {
        let Some(weights) = &self.weights else { return Ok(side) };
        let own: Vec<f32> = indices.iter().map(|&index| weights[index][number]).collect();
        let own = Tensor::new(own, side.loss.device())?;
        Ok(SideLoss { loss: (&side.loss * own)?, ..side })
    }

    /// The log-probabilities that the loss of some pairs is computed from: of their captions and of their images,
    /// `None` for a side that takes no part. `indices` are positions in the list of pairs; `draws` has one draw for
    /// each.
    ///
    /// # Errors
    /// If the model fails.
    pub fn log_probs(&self, indices: &[usize], draws: &[ImageDraw]) -> Result<[Option<PairLogProbs>; 2]> {
        let sides = self.settings.sides;
        Ok([
            sides.understanding().then(|| self.understanding(indices)).transpose()?,
            sides.generation().then(|| self.generation(indices, draws)).transpose()?,
        ])
    }
}

/// A part of a micro batch.
struct Computed {
    /// What its metrics follow from.
    numbers: Numbers,
    /// Its summand of the loss.
    loss: Tensor,
}

/// What the metrics of a part of a micro batch follow from.
struct Numbers {
    /// Captions and images.
    log_probs: [Option<PairLogProbs>; 2],
    /// How far the images of each pair have moved with the prompt, then without it; none where the loss does not ask.
    apart: Option<[Vec<f32>; 2]>,
}

impl Numbers {
    /// All of them in a row: of each side that takes part the log-probabilities of the policy and of the reference, winners
    /// before losers; then how far the images have moved.
    fn note(&self) -> Result<Vec<f32>> {
        let mut note = Vec::new();
        for PairLogProbs { policy, reference } in self.log_probs.iter().flatten() {
            for column in [&policy.win, &policy.lose, &reference.win, &reference.lose] {
                note.extend(column.detach().to_vec1::<f32>()?);
            }
        }
        note.extend(self.apart.iter().flatten().flatten());
        Ok(note)
    }
}

/// The log-probabilities of the captions of some pairs, as numbers.
fn ask(model: &impl PairModel, pairs: &[&TrainingPair]) -> Result<Vec<Pair<f32>>> {
    let Pair { win, lose } = captions(model, pairs)?;
    let (win, lose) = (win.to_vec1::<f32>()?, lose.to_vec1::<f32>()?);
    Ok(win.into_iter().zip(lose).map(|(win, lose)| Pair { win, lose }).collect())
}

fn as_bytes(pairs: &[Pair<f32>]) -> Vec<u8> {
    pairs.iter().flat_map(|pair| [pair.win.to_le_bytes(), pair.lose.to_le_bytes()].concat()).collect()
}

fn from_bytes(bytes: &[u8]) -> Vec<Pair<f32>> {
    let numbers = |bytes: &[u8; 8]| {
        let number = |at: usize| f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Pair { win: number(0), lose: number(4) }
    };
    bytes.as_chunks::<8>().0.iter().map(numbers).collect()
}

impl<M: PairModel> Sharing for PairDpo<M> {
    fn parts(&self) -> usize {
        self.settings.batch_size.div_ceil(self.part)
    }

    fn losses(&mut self, at: Position, parts: &[usize]) -> std::result::Result<Vec<PartLoss>, ObjectiveError> {
        let computed = self.compute(at, parts)?;
        Ok(computed
            .into_iter()
            .map(|part| Ok(PartLoss { note: part.numbers.note()?, loss: part.loss }))
            .collect::<Result<_>>()?)
    }

    fn metrics(&self, notes: &[Vec<f32>]) -> std::result::Result<Metrics, ObjectiveError> {
        let parts = notes.iter().map(|note| self.noted(note)).collect::<Result<Vec<_>>>()?;
        Ok(self.metrics_of(&parts.iter().collect::<Vec<_>>())?)
    }
}

impl<M: PairModel> Objective for PairDpo<M> {
    fn parameters(&self) -> Vec<(String, candle_core::Var)> {
        self.policy.parameters()
    }

    fn micro_batch(&mut self, at: Position) -> std::result::Result<Step, ObjectiveError> {
        Ok(self.loss(at)?)
    }

    fn sharing(&mut self) -> Option<&mut dyn Sharing> {
        Some(self)
    }

    fn epoch(&self, at: Position) -> f64 {
        at.example(0, self.settings.batch_size) as f64 / self.pairs.len() as f64
    }

    /// The settings and a digest of the pairs.
    fn settings(&self) -> Value {
        json!({
            "pair_dpo": self.settings,
            "pairs": self.pairs.len(),
            "pairs_hash": checkpoint::hash(&self.pairs),
        })
    }

    fn describe(&self, folder: &Path) -> std::result::Result<(), ObjectiveError> {
        Ok(self.policy.describe(folder)?)
    }
}

/// log π of both captions of each pair, in one call to the model.
///
/// # Shapes
/// `[pairs]` each
fn captions(model: &impl PairModel, pairs: &[&TrainingPair]) -> Result<Pair<Tensor>> {
    // Win and lose are about one image, which the model then processes once.
    let images = pairs.iter().map(|pair| pair.image.view()).collect::<Result<Vec<_>>>()?;
    let example = |(pair, image): (&&TrainingPair, &ImageView), caption: fn(&TrainingPair) -> &String| CaptionExample {
        image: image.clone(),
        question: pair.question.clone(),
        caption: caption(pair).clone(),
    };
    let wins = pairs.iter().zip(&images).map(|pair| example(pair, |pair| &pair.caption_win));
    let loses = pairs.iter().zip(&images).map(|pair| example(pair, |pair| &pair.caption_lose));
    let examples: Vec<CaptionExample> = wins.chain(loses).collect();
    halves(&model.caption_log_probs(&examples)?, pairs.len())
}

/// log π of both images of each pair under a guidance, averaged over the masks of the pair's draw, in one call to the
/// model.
///
/// # Shapes
/// `[pairs]` each
fn images(model: &impl PairModel, pairs: &[&TrainingPair], draws: &[ImageDraw], guidance: f64) -> Result<Pair<Tensor>> {
    let scored = |draw: &ImageDraw, steps: Option<&Vec<u32>>| match model.scores_all() {
        true => vec![(Scored::All, 1.0)],
        false => states::scored(draw, steps.map_or(&[], Vec::as_slice)),
    };
    let (mut examples, mut weights) = (Vec::new(), Vec::new());
    for side in 0..2 {
        for (pair, draw) in pairs.iter().zip(draws) {
            let codes = [&pair.image_win, &pair.image_lose][side];
            for (scored, weight) in scored(draw, pair.steps.as_ref().map(|steps| &steps[side])) {
                let (prompt, codes) = (pair.caption.clone(), codes.clone());
                examples.push(ImageExample { prompt, unconditional: draw.drop_prompt, codes, scored });
                weights.push(weight);
            }
        }
    }
    let mut log_probs = model.image_log_probs(&examples, guidance)?;
    if weights.iter().any(|weight| *weight != 1.0) {
        log_probs = (&log_probs * Tensor::new(weights.as_slice(), log_probs.device())?)?;
    }
    let times = examples.len() / (2 * pairs.len()).max(1);
    let log_probs = if times == 1 { log_probs } else { log_probs.reshape((2 * pairs.len(), times))?.mean(1)? };
    halves(&log_probs, pairs.len())
}

fn halves(log_probs: &Tensor, pairs: usize) -> Result<Pair<Tensor>> {
    Ok(Pair { win: log_probs.narrow(0, 0, pairs)?, lose: log_probs.narrow(0, pairs, pairs)? })
}
