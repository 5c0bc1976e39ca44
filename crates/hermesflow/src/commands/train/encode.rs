//! From the records of pairs to what training reads: their texts, and the codes of their pictures.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hermesflow_models::{ImageDecoding, UnifiedModel};
use hermesflow_records::{PairRecord, Table};
use hermesflow_train::{MaskStates, PairWeights, Sides, TrainingPair};
use rayon::prelude::*;

use crate::cache::codes::PictureKey;
use crate::cache::pictures::{Opened, OpenedCodes, OpenedView, PictureReader};
use crate::config::ImageCodes;
use crate::digest::{self, digest};
use crate::models::Model;
use crate::run::context::RunContext;
use crate::run::pictures::Pictures;
use crate::run::sharing::Turn;
use crate::run::stage;
use crate::run::texts::Cut;

/// What the files of all pictures hold that training reads, and the codes beside them where these are wanted.
pub fn pictures_digest(pairs: &Table<PairRecord>, run: &RunContext) -> Result<String> {
    let pictures = Pictures::new(&run.layout, 1);
    let content = |pair: &PairRecord| -> Result<String> {
        let named = || format!("record {}", pair.id);
        let own = Some(&pair.img_path).filter(|_| run.config.train.sides != Sides::Gen);
        let imagined = [&pair.image_win, &pair.image_lose].into_iter().filter(|_| run.config.train.sides != Sides::Und);
        let mut held = Vec::new();
        for path in own.into_iter().chain(imagined) {
            held.push(digest::of_file(&pictures.find(path.as_ref()).with_context(named)?)?);
            if run.config.train.codes == ImageCodes::Drawn {
                let codes = pictures.codes(path.as_ref()).with_context(named)?;
                held.push(format!("{codes:?}"));
                if run.config.train.masks == MaskStates::Visited {
                    let steps = pictures.steps(path.as_ref(), &codes.unwrap_or_default()).with_context(named)?;
                    held.push(format!("{steps:?}"));
                }
            }
        }
        Ok(digest(held))
    };
    let mut all = Vec::with_capacity(pairs.len());
    for chunk in pairs.chunks(TOGETHER) {
        all.extend(pairs.read(chunk)?.par_iter().map(content).collect::<Result<Vec<_>>>()?);
    }
    Ok(digest(all))
}

/// Pairs whose pictures are looked at side by side.
const TOGETHER: usize = 256;

/// Pairs ready for training.
pub fn encode(model: &Model, pairs: &Table<PairRecord>, run: &RunContext) -> Result<Vec<TrainingPair>> {
    run.sharing.enter(run.layout.iteration(), Turn::Encode);
    let mut source = Source::new(model, run)?;
    if source.reader.is_scattered() {
        // Together; then each finds all that is read of pictures in its last place.
        let chunks: Vec<Range<usize>> = pairs.chunks(run.config.data.chunk).collect();
        stage::share_out("encode", "pairs", &chunks, run, |chunk| {
            let (_, opened) = source.open_all(pairs.read(chunk)?)?;
            let Apart { own, imagined, .. } = apart(opened);
            source.reader.views(own.into_iter().map(|(_, view)| view).collect())?;
            source.reader.codes(imagined).map(drop)
        })?;
        source.reader.settle()?;
        source = Source::new(model, run)?;
    }
    let task = run.progress.task("encode", "pairs", pairs.len(), 0);
    let mut cut = Cut::new("train", run);
    let (mut encoded, mut encoded_anew) = (Vec::with_capacity(pairs.len()), 0);
    let open = |(number, chunk)| Ok::<_, anyhow::Error>((number, source.open_all(pairs.read(chunk)?)?));
    stage::prefetch(pairs.chunks(run.config.data.chunk).enumerate(), open, |opened| {
        let (number, (chunk, opened)) = opened?;
        run.sharing.begin(number);
        let Apart { own, imagined, steps, drawn } = apart(opened);
        encoded_anew += chunk.len() - drawn;
        let mut own = source.reader.own_images(own)?.into_iter();
        let codes = source.reader.codes(imagined)?;
        let (codes, _) = codes.as_chunks::<2>();
        for ((pair, [image_win, image_lose]), steps) in chunk.iter().zip(codes.iter().cloned()).zip(steps) {
            let image = own.next().unwrap_or_default();
            source.check_texts(pair, &run.config.caption.question).with_context(|| format!("record {}", pair.id))?;
            if run.config.train.sides != Sides::Und {
                cut.look(model, &pair.id, &pair.caption)?;
            }
            encoded.push(TrainingPair {
                id: pair.id.to_string(),
                image,
                question: run.config.caption.question.clone(),
                caption: pair.caption.clone(),
                caption_win: model.spelled(&pair.caption_win),
                caption_lose: model.spelled(&pair.caption_lose),
                image_win,
                image_lose,
                margins: source.margins(pair),
                steps,
            });
        }
        task.advance(chunk.len());
        Ok(())
    })?;
    // Every process has looked at all of them.
    cut.finish(pairs.len(), Ok)?;
    let images = run.config.train.sides != Sides::Und && run.config.train.objective.has_pairs();
    if encoded_anew > 0 && images && run.config.train.codes == ImageCodes::Drawn {
        run.progress.log(format!(
            "train: {encoded_anew} of {} pairs have images without the codes that they were drawn with; both of a pair are \
             encoded from their pictures",
            pairs.len()
        ));
    }
    source.reader.settle()?;
    Ok(encoded)
}

/// The pictures of a pair on their way to the model; of a side that takes no part there is nothing.
struct OpenedPair {
    /// The record's own.
    own: Option<(PictureKey, OpenedView)>,
    /// The winning and the losing image.
    imagined: [OpenedCodes; 2],
    /// The steps in which the codes of these were drawn, where training looks at them.
    steps: Option<[Vec<u32>; 2]>,
    /// Whether the codes of these are those that they were drawn with.
    is_drawn: bool,
}

/// The pictures of some pairs.
struct Apart {
    /// The pairs' own.
    own: Vec<(PictureKey, OpenedView)>,
    /// The imagined ones, two of each pair.
    imagined: Vec<OpenedCodes>,
    /// Of each pair the steps in which the codes of these were drawn, where training looks at them.
    steps: Vec<Option<[Vec<u32>; 2]>>,
    /// How many pairs have theirs as they were drawn.
    drawn: usize,
}

fn apart(opened: Vec<OpenedPair>) -> Apart {
    let mut all = Apart { own: Vec::new(), imagined: Vec::new(), steps: Vec::new(), drawn: 0 };
    for OpenedPair { own, imagined: [win, lose], steps, is_drawn } in opened {
        all.own.extend(own);
        all.imagined.extend([win, lose]);
        all.steps.push(steps);
        all.drawn += usize::from(is_drawn);
    }
    all
}

/// What to do about images that training cannot look at in the states that were visited.
const AGAIN: &str =
    "draw the images again (`hermesflow imagine` does so for its iteration), or train with train.masks=random";

/// Where the codes of pairs come from.
struct Source<'a> {
    sides: Sides,
    codes: ImageCodes,
    weights: PairWeights,
    /// Whether images are scored in the states that the sampler visited.
    in_steps: bool,
    pictures: Pictures,
    reader: PictureReader<'a, Model>,
    model: &'a Model,
}

/// Pairs, and the pictures of each.
type OpenedPairs = (Vec<PairRecord>, Vec<OpenedPair>);

impl<'a> Source<'a> {
    fn new(model: &'a Model, run: &RunContext) -> Result<Self> {
        Ok(Self {
            sides: run.config.train.sides,
            codes: run.config.train.codes,
            weights: run.config.train.pair_weights,
            in_steps: run.config.train.masks == MaskStates::Visited && model.image_decoding() == ImageDecoding::Masked,
            pictures: Pictures::new(&run.layout, model.resolution()),
            reader: PictureReader::new(model, run)?,
            model,
        })
    }

    fn open_all(&self, pairs: Vec<PairRecord>) -> Result<OpenedPairs> {
        let open = |pair: &PairRecord| self.open(pair).with_context(|| format!("record {}", pair.id));
        let opened = pairs.iter().map(open).collect::<Result<Vec<_>>>()?;
        Ok((pairs, opened))
    }

    /// The pair's own image, the winning and the losing one; nothing of those that its side does not need.
    fn open(&self, pair: &PairRecord) -> Result<OpenedPair> {
        let nothing = || Opened::Known(Vec::new());
        let own = match self.sides {
            Sides::Gen => None,
            _ => Some(self.reader.open_own(pair.img_path.as_ref())?),
        };
        let (win, lose) = (pair.image_win.as_ref(), pair.image_lose.as_ref());
        if self.sides == Sides::Und {
            return Ok(OpenedPair { own, imagined: [nothing(), nothing()], steps: None, is_drawn: false });
        }
        // Either both are as they were drawn or both as they are read back: these differ in likelihood.
        if self.codes == ImageCodes::Drawn
            && let (Some(win_codes), Some(lose_codes)) = (self.drawn(win)?, self.drawn(lose)?)
        {
            let of = |picture: &Path, codes: &[u32]| self.steps(picture, codes);
            let steps = match self.in_steps {
                true => Some([of(win, &win_codes)?, of(lose, &lose_codes)?]),
                false => None,
            };
            let imagined = [Opened::Known(win_codes), Opened::Known(lose_codes)];
            return Ok(OpenedPair { own, imagined, steps, is_drawn: true });
        }
        ensure!(
            !self.in_steps,
            "{} and {} lie there without the codes that they were drawn with, and train.masks=visited looks at how these were \
             drawn; {AGAIN}",
            win.display(),
            lose.display()
        );
        let imagined = [self.reader.open_codes(win)?, self.reader.open_codes(lose)?];
        Ok(OpenedPair { own, imagined, steps: None, is_drawn: false })
    }

    /// The steps in which the codes of a picture were drawn.
    fn steps(&self, picture: &Path, codes: &[u32]) -> Result<Vec<u32>> {
        self.pictures.steps(picture, codes)?.with_context(|| {
            format!(
                "nothing beside {} says in which step each of its codes was drawn, as train.masks=visited needs it: an \
                 earlier version drew it; {AGAIN}",
                picture.display()
            )
        })
    }

    /// How much better the wins were judged, where pairs are weighted by it.
    fn margins(&self, pair: &PairRecord) -> Option<[f64; 2]> {
        (self.weights == PairWeights::Margin)
            .then_some([pair.bert_score_win - pair.bert_score_lose, pair.vqa_score_win - pair.vqa_score_lose])
    }

    /// Whether its captions fit the model's positions.
    fn check_texts(&self, pair: &PairRecord, question: &str) -> Result<()> {
        if self.sides == Sides::Gen {
            return Ok(());
        }
        for (key, caption) in [("caption_win", &pair.caption_win), ("caption_lose", &pair.caption_lose)] {
            self.model.check_caption(question, caption).context(key)?;
        }
        Ok(())
    }

    /// The codes that a picture was drawn with, where they lie beside it.
    fn drawn(&self, picture: &Path) -> Result<Option<Vec<u32>>> {
        let drawn = self.pictures.codes(picture)?;
        let (tokens, codebook) = (self.model.image_tokens(), self.model.codebook());
        let fit = |codes: &Vec<u32>| codes.len() == tokens && codes.iter().all(|code| (*code as usize) < codebook);
        ensure!(
            drawn.as_ref().is_none_or(fit),
            "the codes beside {} were drawn by another model; imagine it again or set train.codes=encoded",
            picture.display()
        );
        Ok(drawn)
    }
}

#[cfg(all(test, embedded_model))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::RunConfig;
    use crate::progress::Progress;
    use crate::{files, models};
    use image::{Rgb, RgbImage};
    use serde_json::{Value, json};

    /// Each part of a pair is that of its record: pictures, captions, the question, the prompt.
    #[test]
    fn pairs_are_trained_as_their_records_have_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = RunConfig::default();
        config.data.root = folder.path().into();
        config.caption.question = "What is there?".into();
        let run = RunContext::new(config, 1, Progress::stderr());
        let model = models::open(&run.config.model, &run.progress).unwrap();
        let picture = |seed: u32| {
            RgbImage::from_fn(64, 64, |x, y| {
                Rgb([(x * seed % 251) as u8, (y * (seed + 3) % 241) as u8, (seed * 37 % 256) as u8])
            })
        };
        let records: Vec<Value> = (0..3u32)
            .map(|record| {
                for (number, kind) in (0..).zip(["own", "win", "lose"]) {
                    picture(1 + record * 3 + number).save(folder.path().join(format!("{kind}{record}.png"))).unwrap();
                }
                json!({
                    "id": record.to_string(), "img_path": format!("own{record}.png"), "prompt": "not trained",
                    "caption": format!("the prompt {record}"), "caption_win": format!(" win {record} "),
                    "caption_lose": if record == 1 { String::new() } else { format!("lose {record}") },
                    "bert_score_win": 0.9, "bert_score_lose": 0.1, "image_win": format!("win{record}.png"),
                    "image_lose": format!("lose{record}.png"), "vqa_score_win": 1.0, "vqa_score_lose": 0.0,
                })
            })
            .collect();
        std::fs::write(run.layout.pairs(), Value::from(records).to_string()).unwrap();
        let pairs = files::pairs(&run.layout.pairs()).unwrap();
        let encoded = encode(&model, &pairs, &run).unwrap();
        assert_eq!(encoded.len(), 3);
        for (record, pair) in (0..).zip(encoded) {
            let codes = |number: u32| model.encode_images(&[picture(1 + record * 3 + number)]).unwrap().remove(0);
            let expected = TrainingPair {
                id: record.to_string(),
                image: codes(0).into(),
                question: "What is there?".into(),
                caption: format!("the prompt {record}"),
                caption_win: format!(" win {record}"),
                caption_lose: if record == 1 { String::new() } else { format!(" lose {record}") },
                image_win: codes(1),
                image_lose: codes(2),
                margins: None,
                steps: None,
            };
            assert_eq!(pair, expected);
        }
    }
}
