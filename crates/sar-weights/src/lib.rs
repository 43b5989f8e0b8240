#![doc = include_str!("../README.md")]
//!
//! A file becomes [`NamedTensors`], or a [`WeightsFile`] that is read tensor by tensor, in which an
//! [`Anchor`] finds a model wherever a training program has put it; a [`Layout`] says how the
//! parameter paths of a burn module map to the names of a released checkpoint; [`bind`] joins the two,
//! accepts no difference and no value that is not finite. [`collect`] is its inverse, and
//! [`ModuleTensors`] with [`write_weights`] its inverse one tensor at a time.
//!
//! A `.pth` file is data and never code: its pickle runs in a restricted interpreter of this
//! crate, in which tensors, dictionaries, lists, numbers and strings have a meaning, and every
//! other global is an opaque value that is never called. Strides, offsets, element types, bounds
//! and checksums are checked; no size found in a file is allocated before it is checked against
//! the size of that file.

mod error;
mod file;
mod named;

mod atomic;
mod safetensors;
mod shards;
mod unreadable;

mod flatten;
mod pickle;
mod pth;
mod source;
mod strided;

mod cast;
mod finite;

mod bind;
mod fill;
mod layout;
mod module_tensors;

mod checksum;
mod locate;

pub use cast::cast_floats;
pub use checksum::{Crc32, checksum};
pub use finite::{FiniteCheck, count_not_finite};

pub use atomic::{remove_stale, remove_stale_of, write_bytes, write_whole};
pub use bind::{ParameterInfo, bind, collect, parameters};
pub use error::{Misfit, WeightsError};
pub use file::{Checksum, Format, Target, TensorInfo, WeightsFile, write_weights};
pub use fill::fill;
pub use layout::Layout;
pub use locate::{Anchor, Located, Shapes};
pub use module_tensors::ModuleTensors;
pub use named::NamedTensors;
pub use unreadable::Unreadable;

// Tensors are little-endian in every file read or written here, and are not swapped.
const _: () = assert!(cfg!(target_endian = "little"));
