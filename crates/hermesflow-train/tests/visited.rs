//! Training on the states that the sampler visited, with a small Show-o that draws its pairs itself.
#![allow(clippy::unwrap_used, missing_docs)]

use hermesflow_models::showo::Showo;
use hermesflow_models::{
    ImageExample, ImagineJob, ImagineOptions, MaskSchedule, MaskedOptions, PairModel, Scored, UnifiedModel,
};
use hermesflow_train::states;
use hermesflow_train::{MaskStates, Masking, Objective, PairDpo, PairDpoSettings, Position, Sides, TrainingPair};

#[path = "../../hermesflow-models/tests/small/mod.rs"]
mod small;

use small::TOKENS;

const GUIDANCE: f64 = 1.0;

/// Pairs as the model draws them.
fn pairs(model: &Showo, count: usize) -> Vec<TrainingPair> {
    let options = MaskedOptions { steps: 6, guidance: GUIDANCE, temperature: 2.0, schedule: MaskSchedule::Cosine };
    let prompt = |number: usize| format!("a large red circle above {} small blue squares", number / 2);
    let jobs: Vec<ImagineJob> = (0..2 * count)
        .map(|number| ImagineJob { prompt: prompt(number), seed: number as u64, known: vec![] })
        .collect();
    let made = model.imagine_in_steps(&jobs, &ImagineOptions::Masked(options)).unwrap();
    let pair = |(number, two): (usize, &[hermesflow_models::Imagined])| TrainingPair {
        id: number.to_string(),
        caption: prompt(2 * number),
        image_win: two[0].codes.clone(),
        image_lose: two[1].codes.clone(),
        steps: Some([two[0].steps.clone().unwrap(), two[1].steps.clone().unwrap()]),
        ..TrainingPair::default()
    };
    made.chunks(2).enumerate().map(pair).collect()
}

fn settings(masks_per_pair: usize) -> PairDpoSettings {
    PairDpoSettings {
        seed: 3,
        batch_size: 4,
        sides: Sides::Gen,
        masks: MaskStates::Visited,
        masks_per_pair,
        guidance: GUIDANCE,
        prompt_dropout: 0.0,
        ..PairDpoSettings::default()
    }
}

fn at(step: usize) -> Position {
    Position { step, micro: 0, micros: 1 }
}

#[test]
fn a_fresh_policy_is_its_reference_in_visited_states_and_learns_there() {
    let model = small::model(2);
    let pairs = pairs(&model, 6);
    let policy = model.trainable().unwrap();
    let mut objective = PairDpo::new(policy, model.frozen().unwrap(), pairs, settings(3), |_, _| {}).unwrap();
    let step = objective.micro_batch(at(0)).unwrap();
    for name in ["gen/delta/chosen", "gen/delta/rejected"] {
        assert_eq!(step.metrics.get(name), Some(0.0), "{name}");
    }
    let gradients = hermesflow_nn::gradients::backward(&step.loss().unwrap()).unwrap();
    let moved = objective.parameters().into_iter().filter(|(_, variable)| {
        let gradient = gradients.get(variable.as_tensor()).unwrap().flatten_all().unwrap();
        gradient.to_vec1::<f32>().unwrap().iter().any(|value| *value != 0.0)
    });
    assert!(moved.count() > 10);
}

/// Averaged over the moments of a drawing, the estimate is the log-likelihood of all codes in the order in which they were
/// drawn: what the sampler says of each step, added up.
#[test]
fn many_moments_give_the_likelihood_of_the_whole_drawing() {
    let model = small::model(2);
    let pairs = pairs(&model, 2);
    for pair in &pairs {
        let steps = &pair.steps.as_ref().unwrap()[0];
        let example = |scored| ImageExample {
            prompt: pair.caption.clone(),
            unconditional: false,
            codes: pair.image_win.clone(),
            scored,
        };
        let of = |examples: Vec<ImageExample>| -> Vec<f32> {
            model.image_log_probs(&examples, GUIDANCE).unwrap().to_vec1().unwrap()
        };
        let state = |step: u32| {
            let at = |keep: &dyn Fn(u32) -> bool| {
                (0..TOKENS as u32).filter(|position| keep(steps[*position as usize])).collect::<Vec<_>>()
            };
            example(Scored::Settled { masked: at(&|settled| settled >= step), settled: at(&|settled| settled == step) })
        };
        let visited: Vec<ImageExample> = (0..6).filter(|step| steps.contains(step)).map(state).collect();
        let whole: f32 = of(visited).iter().sum();
        // One moment in the middle of each of 16 equal parts: every code is met once.
        let moments = (0..TOKENS).map(|part| (part as f64 + 0.5) / TOKENS as f64).collect();
        let draw = hermesflow_train::draws::ImageDraw { moments, ..Default::default() };
        let (scored, weights): (Vec<Scored>, Vec<f32>) = states::scored(&draw, steps).into_iter().unzip();
        let estimates = of(scored.into_iter().map(example).collect());
        let mean = estimates.iter().zip(weights).map(|(one, weight)| one * weight).sum::<f32>() / TOKENS as f32;
        assert!((mean - whole).abs() < 1e-3 * whole.abs(), "{mean} {whole}");
    }
    // A step of training averages its moments in the same way.
    let one = |masks| {
        let policy = model.trainable().unwrap();
        let settings = PairDpoSettings { batch_size: 1, ..settings(masks) };
        let mut objective = PairDpo::new(policy, model.frozen().unwrap(), pairs.clone(), settings, |_, _| {}).unwrap();
        objective.micro_batch(at(0)).unwrap().metrics.get("gen/logps/chosen").unwrap()
    };
    let (few, many) = (one(64), one(256));
    assert!((few - many).abs() < 0.05 * many.abs(), "{few} {many}");
}

#[test]
fn pairs_without_their_steps_are_refused_and_named() {
    let model = small::model(1);
    let new = |change: fn(&mut TrainingPair), settings: PairDpoSettings| {
        let mut pairs = pairs(&model, 3);
        change(&mut pairs[1]);
        let policy = model.trainable().unwrap();
        PairDpo::new(policy, model.frozen().unwrap(), pairs, settings, |_, _| {}).map(drop)
    };
    for change in
        [(|pair| pair.steps = None) as fn(&mut TrainingPair), |pair| pair.steps.as_mut().unwrap()[1].truncate(15)]
    {
        let said = new(change, settings(1)).unwrap_err().to_string();
        assert!(said.contains('1') && said.contains("in which step"), "{said}");
        assert!(new(change, PairDpoSettings { masks: MaskStates::Stratified, ..settings(1) }).is_ok());
    }
    let masking = Masking { min_masking_rate: 0.3, ..Masking::default() };
    assert!(new(|_| {}, PairDpoSettings { masking, ..settings(1) }).is_err());
}
