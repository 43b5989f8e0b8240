//! The names and layout of the released tokenizers.

use sar_weights::Layout;

use crate::{Family, Phi, TokenizerConfig};

const FLEXVAR: Layout = Layout {
    renames: &[
        ("mid.block_in", "mid.0"),
        ("mid.attention", "mid.1"),
        ("mid.block_out", "mid.2"),
        ("projections", ""),
    ],
    ignored: &["quantize.codebook_used"],
    roots: &["model"],
};

const VAR_ONE: Layout = var(&var_renames(("residual.phi.0", "quantize.quant_resi.qresi")));
const VAR_SHARED: Layout = var(&var_renames(("residual.phi", "quantize.quant_resi.qresi_ls")));
const VAR_PER_SCALE: Layout = var(&var_renames(("residual.phi", "quantize.quant_resi")));

type Rename = (&'static str, &'static str);

const fn var(renames: &'static [Rename]) -> Layout {
    Layout { renames, ignored: &["quantize.ema_vocab_hit_SV"], roots: &["model"] }
}

const fn var_renames(phi: Rename) -> [Rename; 8] {
    [
        ("encoder.conv_blocks", "encoder.down"),
        ("decoder.conv_blocks", "decoder.up"),
        ("res", "block"),
        ("mid.block_in", "mid.block_1"),
        ("mid.attention", "mid.attn_1"),
        ("mid.block_out", "mid.block_2"),
        ("projections", "qkv"),
        phi,
    ]
}

impl TokenizerConfig {
    /// The names and layout of a released file of this shape.
    pub fn layout(&self) -> &'static Layout {
        match self.family {
            Family::Flexvar => &FLEXVAR,
            Family::Var { phi: Phi::Shared(1) } => &VAR_ONE,
            Family::Var { phi: Phi::Shared(_) } => &VAR_SHARED,
            Family::Var { phi: Phi::PerScale(_) } => &VAR_PER_SCALE,
        }
    }
}
