//! Pair-DPO: ids, log-probabilities under policy and reference, losses, and the gradient of every parameter.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use hermesflow_models::janus::{AboutPicture, Janus, OfCodes};
use hermesflow_nn::gradients;
use hermesflow_train::Pair;
use hermesflow_train::loss::{PairLogProbs, pair_dpo};

use super::Loaded;
use crate::Result;
use crate::check::{Report, largest, values};

/// The parts whose gradients are recorded.
const PARTS: [&str; 5] = ["language_model.", "gen_embed.", "gen_aligner.", "gen_head.", "aligner."];

/// The recorded pairs as one model reads them.
pub(super) struct Batch<'a> {
    loaded: &'a Loaded,
    /// Each pair's picture under that model.
    features: Vec<Tensor>,
    codes: Pair<Vec<Vec<u32>>>,
}

impl<'a> Batch<'a> {
    /// `features` `[pictures, patches, width]` of all recorded pictures.
    pub(super) fn new(loaded: &'a Loaded, features: &Tensor) -> Result<Self> {
        let pairs = &loaded.case.pairs;
        let codes = |which: &str| -> Result<Vec<Vec<u32>>> {
            (0..pairs.len()).map(|at| loaded.ids(&format!("dpo.t2i.{at}.codes_{which}"))).collect()
        };
        let codes = Pair { win: codes("win")?, lose: codes("lose")? };
        let features = pairs.iter().map(|pair| Ok(features.get(pair.image)?)).collect::<Result<_>>()?;
        Ok(Self { loaded, features, codes })
    }

    /// Captions, wins before losses, in one pass.
    fn captions(&self, model: &Janus) -> Result<Pair<Tensor>> {
        let (mut wins, mut losses) = (Vec::new(), Vec::new());
        for (pair, features) in self.loaded.case.pairs.iter().zip(&self.features) {
            let example = |reply| AboutPicture { features, question: &pair.question, reply };
            wins.push(example(&pair.caption_win));
            losses.push(example(&pair.caption_lose));
        }
        wins.extend(losses);
        halves(&model.reply_log_probs(&wins)?.0)
    }

    /// Pictures, wins before losses, in one pass.
    fn pictures(&self, model: &Janus) -> Result<Pair<Tensor>> {
        let examples: Vec<OfCodes> = [&self.codes.win, &self.codes.lose]
            .into_iter()
            .flat_map(|codes| self.loaded.case.pairs.iter().zip(codes))
            .map(|(pair, codes)| OfCodes { prompt: &pair.prompt, unconditional: false, codes })
            .collect();
        halves(&model.code_log_probs(&examples)?)
    }

    /// Both sides: pictures, captions.
    pub(super) fn sides(&self, model: &Janus) -> Result<[Pair<Tensor>; 2]> {
        Ok([self.pictures(model)?, self.captions(model)?])
    }

    /// The mean loss of each side.
    pub(super) fn losses(&self, policy: &Janus, references: &[Pair<Tensor>; 2]) -> Result<[Tensor; 2]> {
        let [pictures, captions] = self.sides(policy)?;
        let loss = |policy: Pair<Tensor>, reference: &Pair<Tensor>| -> Result<Tensor> {
            let log_probs = PairLogProbs { policy, reference: reference.clone() };
            Ok(pair_dpo(&log_probs, self.loaded.case.beta, 0.0)?.loss.mean_all()?)
        };
        Ok([loss(pictures, &references[0])?, loss(captions, &references[1])?])
    }
}

fn halves(log_probs: &Tensor) -> Result<Pair<Tensor>> {
    let pairs = log_probs.dim(0)? / 2;
    Ok(Pair { win: log_probs.narrow(0, 0, pairs)?, lose: log_probs.narrow(0, pairs, pairs)? })
}

/// The names of the sides, in the order of [`Batch::sides`].
pub(super) const SIDES: [&str; 2] = ["t2i", "mmu"];

/// The log-probabilities of the recorded pairs under the reference, which reads pictures by its own tower.
pub(super) fn references(loaded: &Loaded) -> Result<[Pair<Tensor>; 2]> {
    let reference = Janus::load(&loaded.folder.join(&loaded.case.reference), DType::F32, &loaded.device)?;
    let features = reference.tower().forward(&loaded.get("pre.pixels")?.to_device(&loaded.device)?)?;
    Batch::new(loaded, &features)?.sides(&reference)
}

pub(super) fn replay(loaded: &Loaded, report: &mut Report) -> Result<()> {
    let conversation = loaded.model.conversation();
    for (at, pair) in loaded.case.pairs.iter().enumerate() {
        for (key, ours) in [
            ("mmu.{}.und", conversation.question(&pair.question)?),
            ("mmu.{}.win", conversation.reply(&pair.caption_win)?),
            ("mmu.{}.lose", conversation.reply(&pair.caption_lose)?),
            ("t2i.{}.prompt", conversation.prompt(&pair.prompt)?),
        ] {
            let key = key.replace("{}", &at.to_string());
            report.equal(format!("dpo {key}, ids (differing)"), &ours, &loaded.ids(&format!("dpo.{key}"))?);
        }
    }
    let policy = loaded.model.trainable(&PARTS)?;
    let batch = Batch::new(loaded, &loaded.features)?;
    let references = references(loaded)?;
    for ((side, ours), reference) in SIDES.iter().zip(batch.sides(&policy)?).zip(&references) {
        for (who, pair) in [("policy", &ours), ("ref", reference)] {
            for (which, ours) in [("win", &pair.win), ("lose", &pair.lose)] {
                let recorded = loaded.get(&format!("dpo.{side}.logp.{who}_{which}"))?;
                report.close(format!("log-prob {side} {who} {which}"), &ours.detach(), recorded, 2e-3)?;
            }
        }
    }
    let losses = batch.losses(&policy, &references)?;
    for (side, loss) in SIDES.iter().zip(&losses) {
        let recorded = loaded.get(&format!("dpo.{side}.loss"))?.reshape(1)?;
        report.close(format!("loss {side}"), &loss.detach().reshape(1)?, &recorded, 1e-4)?;
    }
    let found = gradients::backward(&(&losses[0] + &losses[1])?)?;
    let mut recorded: BTreeMap<&str, &Tensor> = loaded.below("dpo.grad.");
    let (mut worst, mut at, mut missing) = (0f64, String::new(), 0);
    for (name, variable) in policy.weights().variables() {
        let theirs = recorded.remove(name.as_str()).map(values).transpose()?;
        let ours = found.get(variable.as_tensor()).map(values).transpose()?;
        let (Some(ours), Some(theirs)) = (ours, theirs) else {
            missing += 1;
            continue;
        };
        if ours.len() != theirs.len() {
            missing += 1;
            continue;
        }
        let size = largest(theirs.iter().map(|value| f64::from(*value))).max(f64::MIN_POSITIVE);
        let error = largest(ours.iter().zip(&theirs).map(|(a, b)| f64::from(*a) - f64::from(*b))) / size;
        if error.is_nan() || error > worst {
            (worst, at) = (error, name);
        }
        if worst.is_nan() {
            break;
        }
    }
    report.within("gradients without a recorded or computed twin", f64::from(missing), 0.0);
    report.within("recorded gradients of no parameter", recorded.len() as f64, 0.0);
    report.within(format!("gradients, relative to each largest ({at})"), worst, 1e-3);
    Ok(())
}
