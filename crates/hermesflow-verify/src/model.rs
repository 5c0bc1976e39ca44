//! Model cases: the image tokenizer, both forms of sequences, decoding, Pair-DPO and its training.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use hermesflow_models::showo::imagine::Denoiser;
use hermesflow_models::showo::maskgit::{Decoding, Draws};
use hermesflow_models::showo::reply::{QuestionRows, Sample, write_replies};
use hermesflow_models::showo::sequence::Packed;
use hermesflow_models::showo::{Phi, load_magvit};
use hermesflow_models::{ReplyRequest, Sampling};
use hermesflow_nn::weights::Weights;

use crate::case::{Case, Loaded};
use crate::check::{Report, ids, integers, largest, values};
use crate::{Error, Result, pair_dpo, pairs};

/// Replays one model case on a device.
///
/// # Errors
/// If a file is missing, broken or contradicts another.
pub fn replay(folder: &Path, device: &Device, dtype: DType, report: &mut Report) -> Result<()> {
    let loaded = Loaded::new(folder, device)?;
    if dtype != DType::F32 {
        return narrow(&loaded, dtype, report);
    }
    let phi = Phi::new(&loaded.weights, &loaded.config, &loaded.phi_config)?;
    image_tokenizer(&loaded, report)?;
    imagine(&loaded, &phi, report)?;
    understand(&loaded, &phi, report)?;
    greedy(&loaded, &phi, report)?;
    denoise(&loaded, &phi, report)?;
    pair_dpo::replay(&loaded, report)?;
    if let Err(error) = pairs::replay(&loaded, report) {
        report.fail("pairs, as training computes them", error.to_string());
    }
    Ok(())
}

/// The largest error of logits with matrices in 16 bits, as a share of the largest recorded one.
const NARROW_LOGITS: f64 = 2e-2;
/// The largest error of probabilities after guidance, which multiplies the errors of logits.
const NARROW_PROBABILITIES: f64 = 0.15;

/// Replays what a model computes with its matrices in 16 bits, as far as it is continuous. Results of a choice between
/// nearly equal numbers are left out.
fn narrow(loaded: &Loaded, dtype: DType, report: &mut Report) -> Result<()> {
    let weights = Weights::load(&loaded.folder.join("showo"), dtype, &loaded.device)?;
    let phi = Phi::new(&weights, &loaded.config, &loaded.phi_config)?;
    imagine(loaded, &phi, report)?;
    understand(loaded, &phi, report)?;
    denoise(loaded, &phi, report)?;
    report.skip("mmu greedy replies, gen final codes", "in 16 bits, near ties fall either way");
    pair_dpo::replay_narrow(loaded, report)
}

/// The largest error that passes for logits.
fn logits_tolerance(phi: &Phi, recorded: &Tensor) -> Result<f64> {
    if phi.dtype() == DType::F32 {
        return Ok(1e-4);
    }
    Ok(NARROW_LOGITS * largest(values(recorded)?.into_iter().map(f64::from)))
}

fn image_tokenizer(loaded: &Loaded, report: &mut Report) -> Result<()> {
    let vq = load_magvit(&loaded.folder.join("vq"), &loaded.device)?;
    let encoded = vq.encode(&loaded.get("vq.image")?.to_device(&loaded.device)?)?;
    let recorded = loaded.get("vq.encoder_out")?;
    report.close("vq encoder", &encoded, recorded, 1e-4)?;
    let codes = vq.quantize(&encoded)?;
    let wanted = ids(loaded.get("vq.code")?, "vq.code")?;
    // A code may differ where the encoder's output is zero up to rounding.
    let (b, bits, h, w) = recorded.dims4()?;
    let outputs = recorded.reshape((b, bits, h * w))?.to_vec3::<f32>()?;
    let settled = |image: usize, at: usize| outputs[image].iter().all(|channel| channel[at].abs() >= 1e-5);
    let shapes_agree = codes.len() == wanted.len() && wanted.iter().all(|row| row.len() == h * w);
    let differing = (0..b.min(wanted.len()))
        .flat_map(|image| (0..h * w).map(move |at| (image, at)))
        .filter(|&(image, at)| codes[image].get(at) != wanted[image].get(at) && settled(image, at))
        .count();
    report.within("vq codes (differing)", if shapes_agree { differing as f64 } else { f64::NAN }, 0.0);
    report.close("vq decoder", &vq.decode(&vq.features(&wanted)?)?, loaded.get("vq.decoded")?, 1e-4)
}

/// Which keys each token of packed segments attends to, in the form of a recorded mask.
fn visibility(packed: &Packed, first: usize, length: usize) -> Vec<Vec<bool>> {
    let mut sees = vec![vec![false; length]; length];
    for segment in packed.segments.iter().filter(|s| (first..first + length).contains(&s.queries.start)) {
        for query in segment.queries.clone() {
            let row = &mut sees[query - first];
            segment.sees.iter().flat_map(|range| range.clone()).for_each(|key| row[key - first] = true);
            let end = if segment.causal { query + 1 } else { segment.own.end };
            (segment.own.start..end).for_each(|key| row[key - first] = true);
        }
    }
    sees
}

/// The number of recorded entries that contradict our visibility, without padding.
fn contradictions(recorded: &[Vec<i64>], ours: &[Vec<bool>], padding: usize) -> usize {
    let differs = |row: usize, column: usize| (recorded[row + padding][column + padding] != 0) != ours[row][column];
    (0..ours.len())
        .flat_map(|row| (0..ours.len()).map(move |column| (row, column)))
        .filter(|&(r, c)| differs(r, c))
        .count()
}

fn imagine(loaded: &Loaded, phi: &Phi, report: &mut Report) -> Result<()> {
    let rows = ids(loaded.get("t2i.ids")?, "t2i.ids")?;
    let visible = loaded.get("t2i.visible")?;
    let segment = loaded.segment();
    let (mut packed, mut starts, mut wrong_ids, mut unseen) = (Packed::default(), vec![], 0, 0);
    for (at, row) in rows.iter().enumerate() {
        let (first, padding) = loaded.pack_imagine(&mut packed, row)?;
        let text = &row[padding..row.len() - segment];
        let built = loaded.case.texts.get(at).map(|text| loaded.frames.imagine_text(text));
        wrong_ids += usize::from(built.as_deref() != Some(text));
        let ours = visibility(&packed, first, row.len() - padding);
        unseen += contradictions(&integers(&visible.get(at)?)?, &ours, padding);
        starts.push(first + text.len());
    }
    report.within("t2i text parts (differing)", wrong_ids as f64, 0.0);
    report.within("t2i visibility (differing)", unseen as f64, 0.0);
    let hidden = phi.forward(phi.embed(&packed.ids)?, &packed.positions, &packed.segments(), None)?;
    let logits = phi.logits(&hidden, None)?;
    let ours = starts.iter().map(|&start| logits.narrow(0, start, segment)).collect::<candle_core::Result<Vec<_>>>()?;
    let recorded = loaded.get("t2i.logits")?;
    report.close("t2i logits", &Tensor::stack(&ours, 0)?, recorded, logits_tolerance(phi, recorded)?)
}

fn understand(loaded: &Loaded, phi: &Phi, report: &mut Report) -> Result<()> {
    let rows = ids(loaded.get("mmu.ids")?, "mmu.ids")?;
    let (visible, recorded) = (loaded.get("mmu.visible")?, loaded.get("mmu.logits")?);
    let (mut packed, mut spans, mut unseen) = (Packed::default(), vec![], 0);
    for (at, row) in rows.iter().enumerate() {
        let (first, length) = loaded.pack_understanding(&mut packed, row)?;
        unseen += contradictions(&integers(&visible.get(at)?)?, &visibility(&packed, first, length), 0);
        spans.push((first, length));
    }
    report.within("mmu visibility (differing)", unseen as f64, 0.0);
    let hidden = phi.forward(phi.embed(&packed.ids)?, &packed.positions, &packed.segments(), None)?;
    let logits = phi.logits(&hidden, None)?;
    let mut worst = 0f64;
    for (at, &(first, length)) in spans.iter().enumerate() {
        let (ours, theirs) = (logits.narrow(0, first, length)?, recorded.get(at)?.narrow(0, 0, length)?);
        if ours.dims() != theirs.dims() {
            report.fail("mmu logits", format!("shape {:?}, recorded {:?}", ours.dims(), theirs.dims()));
            return Ok(());
        }
        let next = crate::check::largest_difference(&ours, &theirs)?;
        worst = largest([worst, next].into_iter());
    }
    report.within("mmu logits", worst, logits_tolerance(phi, recorded)?);
    Ok(())
}

fn greedy(loaded: &Loaded, phi: &Phi, report: &mut Report) -> Result<()> {
    let rows = ids(loaded.get("mmu.ids")?, "mmu.ids")?;
    let wanted = ids(loaded.get("mmu.greedy")?, "mmu.greedy")?.concat();
    let row = rows.first().ok_or_else(|| Error::Case("mmu.ids is empty".into()))?;
    let (mut packed, block) = (Packed::default(), loaded.segment() + 1);
    let (first, length) = loaded.pack_understanding(&mut packed, row)?;
    let question = QuestionRows { block: first..first + block, rows: first + block..first + length };
    let request = ReplyRequest {
        question: String::new(),
        sampling: Sampling::GREEDY,
        seed: 0,
        max_new_tokens: loaded.case.max_new_tokens,
    };
    // The recorded reply continues after an end-of-text token, so this one must too.
    let mut sample = [Sample::new(0, &request)];
    write_replies(phi, &packed, &[question], &mut sample, u32::MAX)?;
    report.equal("mmu greedy reply, cached (differing)", &sample[0].tokens, &wanted);
    let mut sequence = row[..length].to_vec();
    for _ in 0..loaded.case.max_new_tokens {
        let mut packed = Packed::default();
        loaded.pack_understanding(&mut packed, &sequence)?;
        let hidden = phi.forward(phi.embed(&packed.ids)?, &packed.positions, &packed.segments(), None)?;
        let last = values(&phi.logits(&hidden.narrow(0, sequence.len() - 1, 1)?, None)?)?;
        let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b]).then(b.cmp(&a))).unwrap_or(0);
        sequence.push(best as u32);
    }
    report.equal("mmu greedy reply, full passes (differing)", &sequence[length..], &wanted);
    Ok(())
}

/// The recorded random draws of one step of one image.
struct Recorded {
    codes: Vec<u32>,
    uniforms: Vec<f32>,
}

impl Draws for Recorded {
    fn code(&mut self, position: usize, _probabilities: &[f32]) -> u32 {
        self.codes[position]
    }

    fn uniform(&mut self, position: usize) -> f32 {
        self.uniforms[position]
    }
}

fn denoise(loaded: &Loaded, phi: &Phi, report: &mut Report) -> Result<()> {
    let Case { guidance_scale, generation_temperature, timesteps, num_vq_tokens: tokens, .. } = loaded.case;
    let codebook = loaded.config.codebook_size;
    let text = |row: &Vec<u32>| -> Vec<u32> {
        let padding = row.iter().take_while(|id| **id == loaded.pad).count();
        row[padding..row.len() - loaded.segment()].to_vec()
    };
    let texts: Vec<Vec<u32>> = ids(loaded.get("gen.ids")?, "gen.ids")?.iter().map(text).collect();
    let uncond: Vec<Vec<u32>> = ids(loaded.get("gen.uncond_ids")?, "gen.uncond_ids")?.iter().map(text).collect();
    let empty = loaded.frames.imagine_text(&[]);
    let wrong = uncond.iter().filter(|row| **row != empty).count();
    report.within("gen unconditional text (differing)", wrong as f64, 0.0);
    let uncond = (guidance_scale != 0.0).then_some(empty.as_slice());
    let denoiser = Denoiser::new(phi, &loaded.config, &loaded.frames, &texts, uncond)?;
    let mut images = vec![Decoding::new(tokens, timesteps, generation_temperature); texts.len()];
    let mut worst = 0f64;
    // In 16 bits, later steps may mask other positions.
    let steps = if phi.dtype() == DType::F32 { timesteps } else { timesteps.min(1) };
    for step in 0..steps {
        let recorded = loaded.get(&format!("gen.{step}.probs"))?;
        if recorded.dims() != [texts.len(), tokens, codebook] {
            report.fail("gen probabilities", format!("gen.{step}.probs has shape {:?}", recorded.dims()));
            return Ok(());
        }
        let recorded = recorded.to_vec3::<f32>()?;
        let name = format!("gen.{step}.sampled");
        let sampled = ids(loaded.get(&name)?, &name)?;
        let uniforms = loaded.get(&format!("gen.{step}.uniform"))?.to_vec2::<f32>()?;
        let whole = |rows: &[usize]| rows.len() == texts.len() && rows.iter().all(|len| *len == tokens);
        let lengths = |rows: Vec<usize>| whole(&rows);
        let fits = lengths(sampled.iter().map(Vec::len).collect()) && lengths(uniforms.iter().map(Vec::len).collect());
        if !fits || sampled.iter().flatten().any(|code| *code as usize >= codebook) {
            report.fail("gen draws", format!("step {step}: the recorded draws do not fit the image"));
            return Ok(());
        }
        let ours = denoiser.probabilities(&images, guidance_scale)?;
        let mut rows = ours.chunks_exact(codebook);
        for (at, image) in images.iter_mut().enumerate() {
            let masked: Vec<usize> = image.masked().collect();
            let mut own = Vec::with_capacity(masked.len() * codebook);
            for position in masked {
                let row = rows.next().ok_or_else(|| Error::Case("a row of probabilities is missing".into()))?;
                let differences = row.iter().zip(&recorded[at][position]).map(|(a, b)| f64::from(a - b));
                worst = largest([worst, largest(differences)].into_iter());
                own.extend_from_slice(row);
            }
            let mut draws = Recorded { codes: sampled[at].clone(), uniforms: uniforms[at].clone() };
            image.advance(&own, codebook, &mut draws);
        }
    }
    if phi.dtype() != DType::F32 {
        report.within("gen probabilities, first step", worst, NARROW_PROBABILITIES);
        return Ok(());
    }
    report.within("gen probabilities, all steps", worst, 1e-4);
    let ours: Vec<u32> = images.into_iter().flat_map(Decoding::into_codes).collect();
    report.equal("gen final codes (differing)", &ours, &ids(loaded.get("gen.final")?, "gen.final")?.concat());
    Ok(())
}
