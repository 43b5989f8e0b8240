//! What tests of files have in common.

use burn_flex::Flex;
use sar_core::SeedTree;
use sar_pipeline::TrainedTokenizer;
use sar_tokenizer::{CodebookGrowth, Family, Init, TokenizerConfig, init};

/// A small random tokenizer of 64 codes of 4 channels.
pub(crate) fn tokenizer(codebook_growth: CodebookGrowth, seed: u64) -> TrainedTokenizer<Flex> {
    let config = TokenizerConfig {
        family: Family::Flexvar,
        base_channels: 32,
        channel_multipliers: vec![1],
        res_blocks: 1,
        z_channels: 4,
        codebook_size: 64,
        codebook_dim: 4,
        codebook_growth,
    };
    let model = init(&config, Init::Torch {}, SeedTree::new(seed), &Default::default()).unwrap();
    TrainedTokenizer { model, config }
}
