#![doc = include_str!("README.md")]

/// Names and texts.
#[rustfmt::skip]
pub const BUILT_IN: [(&str, &str); 11] = [
    ("emoji-quick", include_str!("emoji-quick.toml")),
    ("emoji", include_str!("emoji.toml")),
    ("emoji-var", include_str!("emoji-var.toml")),
    ("emoji-masked", include_str!("emoji-masked.toml")),
    ("flexvar-tokenizer-in256", include_str!("flexvar-tokenizer-in256.toml")),
    ("flexvar-d16-in256", include_str!("flexvar-d16-in256.toml")),
    ("sar-d16-in256", include_str!("sar-d16-in256.toml")),
    ("sar-d20-in256", include_str!("sar-d20-in256.toml")),
    ("sar-d24-in256", include_str!("sar-d24-in256.toml")),
    ("var-tokenizer-in256", include_str!("var-tokenizer-in256.toml")),
    ("var-d16-in256", include_str!("var-d16-in256.toml")),
];
