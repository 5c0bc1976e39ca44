//! The likelihood of images under guidance: what the sampler draws from, a model in f64 written out by hand, and its
//! gradients by differences of that.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use hermesflow_models::showo::imagine::Denoiser;
use hermesflow_models::showo::maskgit::Decoding;
use hermesflow_models::showo::{Frames, PhiConfig, Showo};
use hermesflow_models::{Device, ImageExample, MaskSchedule, PairModel, Products, Scored, Tensor};
use hermesflow_nn::gradients;
use hermesflow_nn::weights::Weights;

mod small;

/// With larger weights than a fresh model has, biases too, so that differences between tokens show.
fn louder(model: &Showo) -> Showo {
    let tensors = model.weights().tensors().iter().enumerate().map(|(at, (name, tensor))| {
        let tensor = match tensor.rank() {
            2 if name.ends_with("weight") => (tensor * 6.0).unwrap(),
            _ => {
                let wave = |i: usize| ((i * 7 + at * 3) as f32).sin() * 0.2;
                let values: Vec<f32> = (0..tensor.elem_count()).map(wave).collect();
                (tensor + Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap()).unwrap()
            }
        };
        (name.clone(), tensor)
    });
    model.with_weights(Weights::from_tensors(tensors.collect::<Vec<_>>(), "louder")).unwrap()
}

fn image(seed: u32) -> Vec<u32> {
    (0..16).map(|at| (at * 7 + seed * 11) % 32).collect()
}

fn examples() -> Vec<ImageExample> {
    let example = |seed, prompt: &str, masked: &[u32]| ImageExample {
        prompt: prompt.into(),
        unconditional: prompt.is_empty(),
        codes: image(seed),
        scored: Scored::Masked(masked.into()),
    };
    vec![
        example(0, "a large red circle", &[0, 5, 6]),
        example(1, "a large red circle", &[0, 5, 6]),
        example(2, "", &[3, 15]),
        example(3, "small blue squares above a circle", &(0..16).collect::<Vec<_>>()),
        example(4, "small blue squares", &[9]),
    ]
}

/// The masked positions of an example.
fn masks(example: &ImageExample) -> &[u32] {
    match &example.scored {
        Scored::Masked(masked) => masked,
        other => panic!("examples of this test are scored at masked positions, not {other:?}"),
    }
}

fn read(log_probs: &Tensor) -> Vec<f64> {
    log_probs.to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// The decoder in f64, one sequence at a time, every sum written out.
#[derive(Clone)]
struct Twin {
    weights: BTreeMap<String, (Vec<f64>, Vec<usize>)>,
    phi: PhiConfig,
    offset: usize,
    codes: usize,
}

impl Twin {
    fn of(model: &Showo) -> Self {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let weights = model.weights().tensors().iter().map(|(name, tensor)| {
            (name.clone(), (values(tensor).into_iter().map(f64::from).collect(), tensor.dims().to_vec()))
        });
        let config = model.config();
        Self {
            weights: weights.collect(),
            phi: model.phi_config().clone(),
            offset: config.image_offset() as usize,
            codes: config.codebook_size,
        }
    }

    fn weight(&self, name: &str) -> &[f64] {
        &self.weights[&format!("showo.{name}.weight")].0
    }

    fn bias(&self, name: &str) -> &[f64] {
        &self.weights[&format!("showo.{name}.bias")].0
    }

    fn affine(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let rows = self.weight(name).chunks(x.len());
        rows.zip(self.bias(name)).map(|(row, b)| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let scale = (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + self.phi.layer_norm_eps).sqrt().recip();
        let weights = self.weight(name).iter().zip(self.bias(name));
        x.iter().zip(weights).map(|(x, (w, b))| (x - mean) * scale * w + b).collect()
    }

    /// Per-head norm and rotary positions.
    fn turned(&self, name: &str, x: &[f64], position: usize) -> Vec<f64> {
        let head = self.phi.head_dim();
        let turned = (head as f64 * self.phi.partial_rotary_factor) as usize;
        let half = turned / 2;
        let mut all = Vec::new();
        for x in x.chunks(head) {
            let x = self.norm(name, x);
            let mut y = x.clone();
            for i in 0..half {
                let angle = position as f64 * self.phi.rope_theta.powf(-2.0 * i as f64 / turned as f64);
                y[i] = x[i] * angle.cos() - x[i + half] * angle.sin();
                y[i + half] = x[i + half] * angle.cos() + x[i] * angle.sin();
            }
            all.extend(y);
        }
        all
    }

    /// Logits over the codes of every row behind the text.
    fn logits(&self, text: &[u32], image: &[u32]) -> Vec<Vec<f64>> {
        let (hidden, head) = (self.phi.hidden_size, self.phi.head_dim());
        let ids: Vec<u32> = text.iter().chain(image).copied().collect();
        let embed = self.weight("model.embed_tokens");
        let mut xs: Vec<Vec<f64>> = ids.iter().map(|&id| embed[id as usize * hidden..][..hidden].to_vec()).collect();
        for layer in 0..self.phi.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let normed: Vec<Vec<f64>> = xs.iter().map(|x| self.norm(&name("input_layernorm"), x)).collect();
            let turned = |proj: &str, norm: &str| -> Vec<Vec<f64>> {
                let one = |(at, x): (usize, &Vec<f64>)| {
                    self.turned(
                        &name(&format!("self_attn.{norm}")),
                        &self.affine(&name(&format!("self_attn.{proj}")), x),
                        at,
                    )
                };
                normed.iter().enumerate().map(one).collect()
            };
            let (q, k) = (turned("q_proj", "q_layernorm"), turned("k_proj", "k_layernorm"));
            let v: Vec<Vec<f64>> = normed.iter().map(|x| self.affine(&name("self_attn.v_proj"), x)).collect();
            for at in 0..xs.len() {
                // Texts are causal; the image sees everything.
                let seen = if at < text.len() { at + 1 } else { ids.len() };
                let mut heads = vec![0.0; hidden];
                for first in (0..hidden).step_by(head) {
                    let score = |to: usize| {
                        let dot: f64 = (first..first + head).map(|i| q[at][i] * k[to][i]).sum();
                        (dot / (head as f64).sqrt()).exp()
                    };
                    let scores: Vec<f64> = (0..seen).map(score).collect();
                    let total: f64 = scores.iter().sum();
                    for i in first..first + head {
                        heads[i] = scores.iter().zip(&v).map(|(score, v)| score / total * v[i]).sum();
                    }
                }
                let gelu = |x: f64| {
                    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
                };
                let inner: Vec<f64> = self.affine(&name("mlp.fc1"), &normed[at]).into_iter().map(gelu).collect();
                let parts = [self.affine(&name("self_attn.dense"), &heads), self.affine(&name("mlp.fc2"), &inner)];
                for i in 0..hidden {
                    xs[at][i] += parts[0][i] + parts[1][i];
                }
            }
        }
        let code_logits = |x: &Vec<f64>| {
            let all = self.affine("lm_head", &self.norm("model.final_layernorm", x));
            all[self.offset..self.offset + self.codes].to_vec()
        };
        xs[text.len()..].iter().map(code_logits).collect()
    }

    /// The sum over the masked positions, by the words of the definition.
    fn log_prob(&self, model: &Showo, example: &ImageExample, guidance: f64) -> f64 {
        let frames = Frames::new(model.config(), model.tokenizer().special);
        let text = |prompt: &str| frames.imagine_text(&model.tokenizer().encode(prompt).unwrap());
        let masked = |at: usize| masks(example).contains(&(at as u32));
        let codes = example.codes.iter().enumerate().map(|(at, &code)| (!masked(at)).then_some(code));
        let ids = frames.imagine_image(codes);
        let (cond, uncond) = (self.logits(&text(&example.prompt), &ids), self.logits(&text(""), &ids));
        let one = |&position: &u32| {
            let row = position as usize + 1;
            let guided = |code: usize| (1.0 + guidance) * cond[row][code] - guidance * uncond[row][code];
            let total: f64 = (0..self.codes).map(|code| guided(code).exp()).sum();
            guided(example.codes[position as usize] as usize) - total.ln()
        };
        masks(example).iter().map(one).sum()
    }
}

#[test]
fn a_guided_likelihood_is_that_of_the_draws_and_of_a_model_in_f64() {
    let model = louder(&small::model(2));
    let twin = Twin::of(&model);
    let phi = hermesflow_models::showo::Phi::new(model.weights(), model.config(), model.phi_config()).unwrap();
    let frames = Frames::new(model.config(), model.tokenizer().special);
    let empty = frames.imagine_text(&[]);
    for guidance in [0.5, 1.0, 5.0] {
        for (number, ours) in read(&model.image_log_probs(&examples(), guidance).unwrap()).into_iter().enumerate() {
            let example = &examples()[number];
            let by_hand = twin.log_prob(&model, example, guidance);
            assert!((ours - by_hand).abs() < 2e-3 * (1.0 + by_hand.abs()), "{number} at {guidance}: {ours}, {by_hand}");

            let text = frames.imagine_text(&model.tokenizer().encode(&example.prompt).unwrap());
            let denoiser = Denoiser::new(&phi, model.config(), &frames, &[text], Some(&empty)).unwrap();
            let masked = |at: usize| masks(example).contains(&(at as u32));
            let known = example.codes.iter().enumerate().map(|(at, &code)| (!masked(at)).then_some(code)).collect();
            let image = [Decoding::resume(known, 4, 1.0, MaskSchedule::Cosine)];
            let probabilities = denoiser.probabilities(&image, guidance).unwrap();
            let drawn: f64 = probabilities
                .chunks(32)
                .zip(masks(example))
                .map(|(row, &at)| f64::from(row[example.codes[at as usize] as usize]).ln())
                .sum();
            assert!((ours - drawn).abs() < 2e-3 * (1.0 + drawn.abs()), "{number} at {guidance}: {ours}, drawn {drawn}");
        }
    }
    // The text matters, so does guidance, and one without a text is the same under all.
    let at = |guidance| read(&model.image_log_probs(&examples(), guidance).unwrap());
    let [weak, strong] = [0.5, 5.0].map(at);
    assert!(weak.iter().zip(&strong).enumerate().all(|(number, (a, b))| ((a - b).abs() < 1e-3) == (number == 2)));
    assert!(model.image_log_probs(&examples(), -0.5).is_err());
    assert!(model.image_log_probs(&examples(), f64::NAN).is_err());
}

#[test]
fn guided_examples_of_a_batch_are_those_of_one_by_one() {
    let model = louder(&small::model(2));
    let together = read(&model.image_log_probs(&examples(), 2.0).unwrap());
    for (example, batched) in examples().into_iter().zip(together) {
        let alone = read(&model.image_log_probs(&[example], 2.0).unwrap())[0];
        assert!((alone - batched).abs() < 1e-3, "{alone} {batched}");
    }
}

/// Differences of the model in f64, along one weight each, against the gradients of every way in which likelihoods are
/// computed.
#[test]
fn guided_gradients_are_those_of_differences() {
    const STEP: f64 = 1e-5;
    let model = louder(&small::model(2)).trainable().unwrap();
    let (twin, guidance) = (Twin::of(&model), 1.5);
    let all = examples();
    let sum = |twin: &Twin| all.iter().map(|example| twin.log_prob(&model, example, guidance)).sum::<f64>();
    // The weights with the largest gradients of some tensors from the embedding to the head.
    let kinds = [
        "embed_tokens",
        "0.self_attn.q_proj",
        "0.self_attn.k_layernorm",
        "1.self_attn.v_proj",
        "1.mlp.fc1",
        "final_layernorm",
        "lm_head.weight",
        "lm_head.bias",
    ];
    let ways = [
        ("operators", model.clone(), 2e-3),
        ("blocks", model.clone().training(Products::Bf16).unwrap(), 0.08),
        ("blocks again", model.clone().training(Products::Bf16).unwrap().recompute(true), 0.08),
    ];
    let mut expected: BTreeMap<(String, usize), f64> = BTreeMap::new();
    for (way, model, tolerance) in ways {
        let loss = model.image_log_probs(&all, guidance).unwrap().sum_all().unwrap();
        let found = gradients::backward(&loss).unwrap();
        for (name, variable) in model.parameters() {
            let gradient = found.get(variable.as_tensor()).unwrap_or_else(|| panic!("{way}: {name} has no gradient"));
            let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(gradient.iter().all(|value| value.is_finite()), "{way}: {name}");
            if !kinds.iter().any(|kind| name.contains(kind)) {
                continue;
            }
            let largest = (0..gradient.len()).max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs())).unwrap();
            let expected = *expected.entry((name.clone(), largest)).or_insert_with(|| {
                let shifted = |by: f64| {
                    let mut twin = twin.clone();
                    twin.weights.get_mut(&name).unwrap().0[largest] += by;
                    sum(&twin)
                };
                (shifted(STEP) - shifted(-STEP)) / (2.0 * STEP)
            });
            let ours = f64::from(gradient[largest]);
            assert!(
                (ours - expected).abs() < tolerance * expected.abs(),
                "{way}: {name}[{largest}]: {ours}, by differences {expected}"
            );
        }
    }
    // Nothing outside the codes is drawn from, so their rows of the head stand still.
    let found = gradients::backward(&model.image_log_probs(&all, guidance).unwrap().sum_all().unwrap()).unwrap();
    let parameters: BTreeMap<_, _> = model.parameters().into_iter().collect();
    let bias = found.get(parameters["showo.lm_head.bias"].as_tensor()).unwrap().to_vec1::<f32>().unwrap();
    let codes = twin.offset..twin.offset + twin.codes;
    assert!(bias.iter().enumerate().all(|(at, value)| codes.contains(&at) || *value == 0.0));
}

#[test]
fn whole_blocks_in_f32_agree_with_operators() {
    // Large enough to run by whole blocks in f32.
    let model = louder(&small::sized(2, 384, 16)).trainable().unwrap();
    let whole = model.training(Products::F32).unwrap();
    let examples: Vec<ImageExample> = examples().into_iter().take(3).collect();
    let (plain, whole) =
        (model.image_log_probs(&examples, 1.0).unwrap(), whole.image_log_probs(&examples, 1.0).unwrap());
    for (a, b) in read(&plain).into_iter().zip(read(&whole)) {
        assert!((a - b).abs() < 2e-3 * a.abs(), "{a} {b}");
    }
    let found = [plain, whole].map(|log_probs| gradients::backward(&log_probs.sum_all().unwrap()).unwrap());
    for (name, variable) in model.parameters() {
        let [a, b] = [0, 1].map(|at| found[at].get(variable.as_tensor()).unwrap().clone());
        let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let off = norm(&(&a - &b).unwrap()) / norm(&a);
        assert!(off < 2e-3, "{name}: {off}");
    }
}
