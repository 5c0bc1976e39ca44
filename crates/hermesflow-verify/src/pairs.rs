//! The Pair-DPO part of a model case again, as training computes it: texts and codes go in as a [`TrainingPair`], and
//! the log-probabilities come out of the functions that a step of the trainer calls, with its tokenizing, packing,
//! masks, labels and reference.
//!
//! The recorded rows are ids of a vocabulary without a tokenizer. One is made for the case: each id becomes one
//! character, and spaces and the frame around a question become nothing. The original trains its captions without the
//! `<|sot|>` with which it samples them (a fault that is corrected here); the token that stands in its place is taken
//! as `<|sot|>`.

use candle_core::{DType, Tensor};
use hermesflow_models::showo::{Showo, ShowoTokenizer, load_magvit};
use hermesflow_nn::gradients;
use hermesflow_nn::ops::Products;
use hermesflow_nn::weights::Weights;
use hermesflow_train::draws::ImageDraw;
use hermesflow_train::loss::{PairLogProbs, pair_dpo};
use hermesflow_train::{LossSettings, PairDpo, PairDpoSettings, Sides, TrainingPair};
use serde_json::json;

use crate::case::Loaded;
use crate::check::{Report, ids, integers};
use crate::pair_dpo::compare_gradients;
use crate::{Error, Result};

/// The character that stands for id 0.
const FIRST: u32 = 0x4E00;

/// Replays the recorded batch.
pub(crate) fn replay(loaded: &Loaded, report: &mut Report) -> Result<()> {
    let weights = loaded.weights.trainable()?;
    let reference = Weights::load(&loaded.folder.join("showo_ref"), DType::F32, &loaded.device)?;
    let sides = [
        ("mmu", Sides::Und, start_of_captions(loaded)?, Batch::captions(loaded)?),
        ("t2i", Sides::Gen, loaded.special.sot, Batch::images(loaded)?),
    ];
    let mut losses = Vec::new();
    for (name, sides, sot, Batch { pairs, draws }) in sides {
        let loss = LossSettings { beta: loaded.case.beta, ..LossSettings::default() };
        let settings = PairDpoSettings { sides, loss, ..PairDpoSettings::default() };
        let all: Vec<usize> = (0..pairs.len()).collect();
        let open = |weights: &Weights| Ok::<_, Error>(model(loaded, weights.clone(), sot)?.training(Products::F32)?);
        let objective = PairDpo::new(open(&weights)?, open(&reference)?, pairs, settings, |_, _| {})?;
        let log_probs = objective.log_probs(&all, &draws)?.into_iter().flatten().next();
        let log_probs = log_probs.ok_or_else(|| Error::Case(format!("no side {name} takes part")))?;
        compare(loaded, name, &log_probs, report)?;
        let loss = pair_dpo(&log_probs, loaded.case.beta, 0.0)?.loss.mean_all()?;
        let recorded = loaded.get(&format!("dpo.{name}.loss"))?.reshape(1)?;
        report.close(format!("loss {name}, as training computes it"), &loss.detach().reshape(1)?, &recorded, 1e-5)?;
        losses.push(loss);
    }
    let found = gradients::backward(&Tensor::stack(&losses, 0)?.sum_all()?)?;
    compare_gradients(loaded, &weights, &found, "gradients, as training computes them", 1e-3, report)
}

/// The token between the image and the question of recorded captions.
fn start_of_captions(loaded: &Loaded) -> Result<u32> {
    let rows = ids(loaded.get("dpo.mmu.win")?, "dpo.mmu.win")?;
    let start = rows.first().and_then(|row| row.get(loaded.segment() + 1)).copied();
    start.ok_or_else(|| Error::Case("dpo.mmu.win: no row has a text".into()))
}

fn compare(loaded: &Loaded, side: &str, ours: &PairLogProbs, report: &mut Report) -> Result<()> {
    for (who, pair) in [("policy", &ours.policy), ("ref", &ours.reference)] {
        for (which, ours) in [("win", &pair.win), ("lose", &pair.lose)] {
            let recorded = loaded.get(&format!("dpo.{side}.logp.{who}_{which}"))?;
            let what = format!("log-prob {side} {who} {which}, as training computes it");
            report.close(what, &ours.detach(), recorded, 1e-3)?;
        }
    }
    Ok(())
}

/// A model of the case with the tokenizer that is made for it, whose texts start with the token `sot`.
fn model(loaded: &Loaded, weights: Weights, sot: u32) -> Result<Showo> {
    let config = loaded.config.clone();
    let eot = loaded.special.eot;
    let token = |id: u32| if id == eot { "<|endoftext|>".to_string() } else { character(id).to_string() };
    let vocabulary: serde_json::Map<_, _> =
        (0..config.llm_vocab_size as u32).map(|id| (token(id), id.into())).collect();
    let nothing = |text: &str| json!({ "type": "Replace", "pattern": { "String": text }, "content": "" });
    let normalizers = ["USER: \n", " ASSISTANT:", " "].map(nothing);
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": { "type": "Split", "pattern": { "Regex": "(?s)." }, "behavior": "Isolated", "invert": false },
        "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "a word that is no character" },
    });
    let origin = loaded.folder.join("case.json");
    let mut tokenizer = ShowoTokenizer::from_bytes(tokenizer.to_string().as_bytes(), &config, &origin)?;
    tokenizer.special.sot = sot;
    let vq = load_magvit(&loaded.folder.join("vq"), &loaded.device)?;
    Ok(Showo::new(config, loaded.phi_config.clone(), weights, tokenizer, vq)?)
}

/// The character that stands for an id.
fn character(id: u32) -> char {
    char::from_u32(FIRST + id).unwrap_or('?')
}

fn text(ids: &[u32]) -> String {
    ids.iter().copied().map(character).collect()
}

/// The recorded rows of one side in the form in which training receives them.
struct Batch {
    pairs: Vec<TrainingPair>,
    draws: Vec<ImageDraw>,
}

/// A recorded caption: the codes of its image, the question, the caption.
struct Caption {
    image: Vec<u32>,
    question: String,
    caption: String,
}

/// A recorded image: its codes, the prompt, the masked positions.
struct Image {
    codes: Vec<u32>,
    prompt: String,
    masked: Vec<u32>,
}

impl Batch {
    fn captions(loaded: &Loaded) -> Result<Self> {
        let [wins, losses] = read(loaded, "mmu", caption)?;
        let pair = |(number, (win, lose)): (usize, (Caption, Caption))| {
            agree("mmu", number, (&win.image, &win.question), (&lose.image, &lose.question))?;
            Ok(TrainingPair {
                id: number.to_string(),
                image: win.image.into(),
                question: win.question,
                caption_win: win.caption,
                caption_lose: lose.caption,
                ..TrainingPair::default()
            })
        };
        let pairs: Vec<TrainingPair> = wins.into_iter().zip(losses).enumerate().map(pair).collect::<Result<_>>()?;
        Ok(Self { draws: pairs.iter().map(|_| ImageDraw::default()).collect(), pairs })
    }

    fn images(loaded: &Loaded) -> Result<Self> {
        let [wins, losses] = read(loaded, "t2i", image)?;
        let (mut pairs, mut draws) = (Vec::new(), Vec::new());
        for (number, (win, lose)) in wins.into_iter().zip(losses).enumerate() {
            agree("t2i", number, (&win.prompt, &win.masked), (&lose.prompt, &lose.masked))?;
            // A dropped prompt is part of the random draw, not of the pair.
            let drop_prompt = win.prompt.is_empty();
            let caption = if drop_prompt { text(&[0, 1]) } else { win.prompt };
            draws.push(ImageDraw { masks: vec![win.masked], drop_prompt, ..ImageDraw::default() });
            let (id, image_win, image_lose) = (number.to_string(), win.codes, lose.codes);
            pairs.push(TrainingPair { id, caption, image_win, image_lose, ..TrainingPair::default() });
        }
        Ok(Self { pairs, draws })
    }
}

/// The recorded wins and losses of a side.
fn read<T>(loaded: &Loaded, side: &str, row: fn(&Loaded, &[u32], &[i64]) -> Result<T>) -> Result<[Vec<T>; 2]> {
    let all = |which: &str| -> Result<Vec<T>> {
        let name = format!("dpo.{side}.{which}");
        let labels = integers(loaded.get(&format!("{name}_labels"))?)?;
        let rows = ids(loaded.get(&name)?, &name)?;
        rows.iter().zip(&labels).map(|(ids, labels)| row(loaded, ids, labels)).collect()
    };
    Ok([all("win")?, all("lose")?])
}

fn agree<T: PartialEq>(side: &str, number: usize, win: T, lose: T) -> Result<()> {
    if win == lose {
        return Ok(());
    }
    Err(Error::Case(format!("dpo.{side}: the win and the lose of row {number} are not about the same")))
}

/// `<|mmu|> <|soi|> codes <|eoi|> start question caption <|eot|> [PAD]…`, each token of the caption its own label.
fn caption(loaded: &Loaded, row: &[u32], labels: &[i64]) -> Result<Caption> {
    let broken = |message: &str| Error::Case(format!("dpo.mmu: {message}"));
    let block = loaded.segment() + 1;
    let labelled: Vec<usize> = (0..labels.len().min(row.len())).filter(|at| labels[*at] >= 0).collect();
    let (Some(&first), Some(&last)) = (labelled.first(), labelled.last()) else {
        return Err(broken("a row has no label"));
    };
    if first < block + 1 || last - first + 1 != labelled.len() {
        return Err(broken("the labels of a row are not one run behind the image"));
    }
    if row[block] != start_of_captions(loaded)? {
        return Err(broken("the texts of rows do not start alike"));
    }
    if labelled.iter().any(|at| labels[*at] != i64::from(row[*at])) || row[last] != loaded.special.eot {
        return Err(broken("the labels of a row are not its own tokens up to the end of the text"));
    }
    Ok(Caption {
        image: codes(loaded, &row[2..block - 1])?,
        question: text(&row[block + 1..first]),
        caption: text(&row[first..last]),
    })
}

/// `[PAD]… <|t2i|> <|sot|> prompt <|eot|> <|soi|> codes or mask <|eoi|>`, the labels where the masks are.
fn image(loaded: &Loaded, row: &[u32], labels: &[i64]) -> Result<Image> {
    let broken = |message: &str| Error::Case(format!("dpo.t2i: {message}"));
    let padding = row.iter().take_while(|id| **id == loaded.pad).count();
    let start = row.len().checked_sub(loaded.segment()).filter(|start| *start >= padding + 3);
    let start = start.ok_or_else(|| broken("a row is shorter than its image and the frame of a text"))?;
    let (mut whole, mut masked) = (row[start + 1..row.len() - 1].to_vec(), Vec::new());
    for (position, (id, label)) in whole.iter_mut().zip(&labels[start + 1..]).enumerate() {
        match u32::try_from(*label) {
            Ok(label) if *id == loaded.config.mask_token() => {
                masked.push(position as u32);
                *id = label;
            }
            Err(_) if *id != loaded.config.mask_token() => {}
            _ => return Err(broken("a row has labels elsewhere than masks")),
        }
    }
    let mut prompt = text(&row[padding + 2..start - 1]);
    if start - padding == loaded.config.max_text_len {
        prompt.push(character(0)); // the recorded prompt may have been cut
    }
    Ok(Image { codes: codes(loaded, &whole)?, prompt, masked })
}

/// Image tokens as codes.
fn codes(loaded: &Loaded, ids: &[u32]) -> Result<Vec<u32>> {
    let code = |id: &u32| id.checked_sub(loaded.config.image_offset());
    let codes: Option<Vec<u32>> = ids.iter().map(code).collect();
    codes.ok_or_else(|| Error::Case("dpo: a token of an image is none".into()))
}
