//! Files in, files out, and modules in between: one binary, because each links burn.

mod support;

mod pth;

mod parity;

mod safetensors;

mod robustness;

mod bind;
