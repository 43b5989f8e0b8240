//! Reading the arguments of opcodes.

use super::Value;

/// The bytes of a pickle, and how many of them are read.
#[derive(Default)]
pub(super) struct Input<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..n).ok_or("the pickle ends too early")?;
        self.at += n;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("N bytes were taken"))
    }

    pub(super) fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes what follows a little-endian length of `n` bytes.
    fn counted(&mut self, n: usize) -> Result<&'a [u8], String> {
        let mut length = [0; 8];
        length[..n].copy_from_slice(self.take(n)?);
        // A length beyond usize is beyond the input as well.
        self.take(usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX))
    }

    /// Bytes, which hold no tensor.
    pub(super) fn bytes(&mut self, n: usize) -> Result<Value<'a>, String> {
        self.counted(n)?;
        Ok(Value::Opaque)
    }

    /// A string; what is not UTF-8 is opaque.
    pub(super) fn text(&mut self, n: usize) -> Result<Value<'a>, String> {
        Ok(str::from_utf8(self.counted(n)?).map_or(Value::Opaque, Value::Str))
    }

    /// A two's complement integer of any length; those over 64 bits are opaque.
    pub(super) fn long(&mut self, n: usize) -> Result<Value<'a>, String> {
        let digits = self.counted(n)?;
        if digits.len() > 8 {
            return Ok(Value::Opaque);
        }
        let fill = if digits.last().is_some_and(|&high| high >= 0x80) { 0xff } else { 0 };
        let mut extended = [fill; 8];
        extended[..digits.len()].copy_from_slice(digits);
        Ok(Value::Int(i64::from_le_bytes(extended)))
    }

    /// The text up to the next newline.
    pub(super) fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n').ok_or("a line without an end")?;
        self.at += end + 1;
        str::from_utf8(&rest[..end]).map_err(|_| "a line that is not UTF-8".into())
    }
}
