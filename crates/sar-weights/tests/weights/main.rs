//! Files in, files out, and modules in between: one binary, because each links burn.

mod support;

mod pth;

mod pth_write;

mod parity;

mod safetensors;

mod released;

mod hostile;

mod robustness;

mod bind;
