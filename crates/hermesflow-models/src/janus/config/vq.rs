//! `gen_vision_config` and `gen_head_config`: the sizes of the VQ image tokenizer, and of the head over its codes.

use std::path::Path;

use hermesflow_nn::sizes;
use serde::Deserialize;

use crate::showo::MagvitConfig;

/// Groups of every GroupNorm.
pub const GROUPS: usize = 32;
/// Levels, and what each may have of channels (times `ch`) and of blocks.
const MOST_LEVELS: usize = 8;
const MOST_PER_LEVEL: usize = 64;

/// `gen_vision_config.cls` of a lookup-free image tokenizer, which no published checkpoint has: the small models of this
/// program share theirs with another kind of model.
pub const LOOKUP_FREE: &str = "MAGVITv2";

/// `gen_vision_config.params`, as the file has them.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct VqParams {
    image_token_size: usize,
    n_embed: usize,
    ch: Option<usize>,
    encoder_ch_mult: Option<Vec<usize>>,
    decoder_ch_mult: Option<Vec<usize>>,
    num_res_blocks: Option<usize>,
    z_channels: Option<usize>,
    lookup_free: Option<MagvitConfig>,
}

/// The sizes of the VQ image tokenizer.
#[derive(Debug, Clone, PartialEq)]
pub struct VqConfig {
    /// Codes.
    pub codes: usize,
    /// Width of a code's vector.
    pub code_width: usize,
    /// Channels of each level of the encoder, from the picture down.
    pub encoder: Vec<usize>,
    /// Channels of each level of the decoder, from the picture down: the order of execution is the other way round.
    pub decoder: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub blocks: usize,
    /// Channels of the encoder's output, before they become a code's vector.
    pub z_channels: usize,
    /// The sizes of the lookup-free image tokenizer that stands in the place of a VQ, if one does.
    pub lookup_free: Option<MagvitConfig>,
}

impl VqConfig {
    /// The sizes that the name means, over which extra keys win.
    pub(super) fn new(cls: &str, params: &VqParams) -> Result<Self, String> {
        if cls == LOOKUP_FREE {
            return Self::lookup_free(params);
        }
        let known = cls == "VQ-16";
        let missing =
            |key: &str| format!("gen_vision_config.cls {cls:?} is not known, and {key} is not given; known: VQ-16");
        let number = |value: Option<usize>, named: usize, key: &str| {
            value.or(known.then_some(named)).ok_or_else(|| missing(key))
        };
        let list = |value: &Option<Vec<usize>>, key: &str| {
            value.clone().or(known.then(|| vec![1, 1, 2, 2, 4])).ok_or_else(|| missing(key))
        };
        let ch = number(params.ch, 128, "ch")?;
        let blocks = number(params.num_res_blocks, 2, "num_res_blocks")?;
        let z_channels = number(params.z_channels, 256, "z_channels")?;
        sizes::check_ranges(&[
            ("gen_vision_config.params.image_token_size", params.image_token_size, sizes::IDS),
            ("gen_vision_config.params.n_embed", params.n_embed, sizes::WIDTH),
            ("gen_vision_config.params.ch", ch, sizes::WIDTH),
            ("gen_vision_config.params.num_res_blocks", blocks, 1..=MOST_PER_LEVEL),
            ("gen_vision_config.params.z_channels", z_channels, sizes::WIDTH),
        ])?;
        let channels = |key: &str, mult: Vec<usize>| -> Result<Vec<usize>, String> {
            sizes::check_ranges(&[(
                &format!("the length of gen_vision_config.params.{key}"),
                mult.len(),
                1..=MOST_LEVELS,
            )])?;
            mult.iter().try_for_each(|number| sizes::check_ranges(&[(key, *number, 1..=MOST_PER_LEVEL)]))?;
            let channels: Vec<usize> = mult.iter().map(|number| number * ch).collect();
            match channels.iter().find(|channels| !channels.is_multiple_of(GROUPS)) {
                Some(odd) => Err(format!("gen_vision_config: {odd} channels do not divide into {GROUPS} groups")),
                None => Ok(channels),
            }
        };
        let encoder = channels("encoder_ch_mult", list(&params.encoder_ch_mult, "encoder_ch_mult")?)?;
        let decoder = channels("decoder_ch_mult", list(&params.decoder_ch_mult, "decoder_ch_mult")?)?;
        if encoder.len() != decoder.len() {
            return Err(format!(
                "gen_vision_config: an encoder of {} levels and a decoder of {} have different grids of codes",
                encoder.len(),
                decoder.len()
            ));
        }
        Ok(Self {
            codes: params.image_token_size,
            code_width: params.n_embed,
            encoder,
            decoder,
            blocks,
            z_channels,
            lookup_free: None,
        })
    }

    /// The sizes of a lookup-free image tokenizer.
    fn lookup_free(params: &VqParams) -> Result<Self, String> {
        let missing = || format!("gen_vision_config.params.lookup_free is missing, which cls {LOOKUP_FREE} needs");
        let magvit = params.lookup_free.clone().ok_or_else(missing)?;
        magvit.validate(Path::new("gen_vision_config.params.lookup_free")).map_err(|error| error.to_string())?;
        let codes = 1usize << magvit.z_channels;
        if params.image_token_size != codes {
            let (given, bits) = (params.image_token_size, magvit.z_channels);
            return Err(format!("image_token_size {given} is not the {codes} codes of {bits} bits (z_channels)"));
        }
        sizes::check_ranges(&[("gen_vision_config.params.n_embed", params.n_embed, sizes::WIDTH)])?;
        Ok(Self {
            codes,
            code_width: params.n_embed,
            encoder: magvit.encoder().channels,
            decoder: magvit.decoder().channels,
            blocks: 0,
            z_channels: magvit.z_channels,
            lookup_free: Some(magvit),
        })
    }

    /// Pixels per side of a code: a halving for each level but the last.
    pub fn downsampling(&self) -> usize {
        1 << (self.encoder.len() - 1)
    }
}

/// `gen_head_config.params`, as the file has them.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct HeadParams {
    n_embed: usize,
    image_token_embed: usize,
    image_token_size: usize,
}

/// The sizes of the head over the codes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadConfig {
    /// Width of what goes in.
    pub input: usize,
    /// Width of its inner layer.
    pub inner: usize,
    /// Codes.
    pub codes: usize,
}

impl HeadConfig {
    pub(super) fn new(params: &HeadParams) -> Result<Self, String> {
        sizes::check_ranges(&[
            ("gen_head_config.params.n_embed", params.n_embed, sizes::WIDTH),
            ("gen_head_config.params.image_token_embed", params.image_token_embed, sizes::WIDTH),
            ("gen_head_config.params.image_token_size", params.image_token_size, sizes::IDS),
        ])?;
        Ok(Self { input: params.n_embed, inner: params.image_token_embed, codes: params.image_token_size })
    }
}
