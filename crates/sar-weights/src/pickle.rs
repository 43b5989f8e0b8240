//! A restricted interpreter of the pickles that torch writes (protocols 2 to 5), and their writing.
//!
//! It builds dictionaries, lists, tuples, strings, integers and descriptions of tensors. Every
//! other value is [`Value::Opaque`]: nothing is looked up, called or imported. A tensor that is
//! there but cannot be read is [`Value::Foreign`], so that it can be named. All containers live
//! in arenas and values are indices into them, so that neither deep nesting nor a container that
//! holds itself costs more than its opcodes.

mod global;
mod input;
mod op;
mod write;

use std::collections::HashMap;

use burn::tensor::DType;

use self::global::known_global;
pub(crate) use self::global::{Element, Foreign, Global};
use self::input::Input;
pub(crate) use self::write::Writer;

/// The most opcodes of one pickle; a checkpoint of torch takes about 25 per tensor.
const MAX_OPCODES: usize = 1 << 22;
/// The most items that are copied into dictionaries made from lists of pairs. Such a list can be
/// used again and again, so that the opcodes alone do not bound this.
const MAX_COPIED: usize = 1 << 20;

/// A value of the pickle. Containers are indices into the [`Heap`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    /// Anything that neither is nor holds a tensor, or that would have to be called to find out.
    Opaque,
    Int(i64),
    Str(&'a str),
    /// A tuple or a list.
    Sequence(usize),
    Dict(usize),
    Global(Global<'a>),
    Storage(usize),
    Tensor(usize),
    /// A tensor or an array that cannot be read, and why.
    Foreign(Foreign<'a>),
}

/// A storage: the entry `data/KEY` of the zip file, or a block of the legacy file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Storage<'a> {
    pub(crate) key: &'a str,
    pub(crate) element: Element<'a>,
    /// The number of elements.
    pub(crate) len: i64,
    /// The first element and the number of elements of a part of the storage. Only the oldest
    /// legacy files have storages that are parts of others.
    pub(crate) part: Option<(i64, i64)>,
}

/// The arguments of `torch._utils._rebuild_tensor_v2`; sizes and strides are sequences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rebuilt {
    pub(crate) storage: usize,
    pub(crate) dtype: DType,
    pub(crate) offset: i64,
    pub(crate) sizes: usize,
    pub(crate) strides: usize,
}

/// What the containers of a pickle hold.
#[derive(Debug, Default)]
pub(crate) struct Heap<'a> {
    pub(crate) sequences: Vec<Vec<Value<'a>>>,
    pub(crate) dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    pub(crate) storages: Vec<Storage<'a>>,
    pub(crate) tensors: Vec<Rebuilt>,
}

/// Runs a pickle and returns what it leaves on the stack.
///
/// # Errors
/// Where in the pickle, and what is wrong there.
pub(crate) fn run(pickle: &[u8]) -> Result<(Heap<'_>, Value<'_>), String> {
    run_first(pickle).map(|(heap, root, _)| (heap, root))
}

/// Runs the pickle that the bytes begin with, and also returns how many bytes it has.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_first(bytes: &[u8]) -> Result<(Heap<'_>, Value<'_>, usize), String> {
    let mut machine = Machine { input: Input::new(bytes), ..Machine::default() };
    let root = machine.run().map_err(|what| format!("byte {}: {what}", machine.opcode_at))?;
    Ok((machine.heap, root, machine.input.at))
}

#[derive(Default)]
struct Machine<'a> {
    input: Input<'a>,
    opcode_at: usize,
    stack: Vec<Value<'a>>,
    /// For each open mark, the length of the stack below it.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    heap: Heap<'a>,
    n_copied: usize,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Value<'a>, String> {
        match self.input.take(2)? {
            [op::PROTO, 2..=5] => {}
            _ => return Err("no pickle of protocol 2 to 5 begins here".into()),
        }
        for _ in 0..MAX_OPCODES {
            self.opcode_at = self.input.at;
            match self.input.byte()? {
                op::STOP => return self.pop(),
                opcode => self.step(opcode)?,
            }
        }
        Err(format!("more than {MAX_OPCODES} opcodes"))
    }

    fn step(&mut self, opcode: u8) -> Result<(), String> {
        let value = match opcode {
            op::NONE | op::NEWTRUE | op::NEWFALSE | op::EMPTY_SET => Value::Opaque,
            op::BININT1 => Value::Int(self.input.byte()?.into()),
            op::BININT2 => Value::Int(u16::from_le_bytes(self.input.array()?).into()),
            op::BININT => Value::Int(i32::from_le_bytes(self.input.array()?).into()),
            op::BINFLOAT => {
                self.input.take(8)?;
                Value::Opaque
            }
            op::LONG1 => self.input.long(1)?,
            op::LONG4 => self.input.long(4)?,
            op::SHORT_BINUNICODE | op::SHORT_BINSTRING => self.input.text(1)?,
            op::BINUNICODE | op::BINSTRING => self.input.text(4)?,
            op::BINUNICODE8 => self.input.text(8)?,
            op::SHORT_BINBYTES => self.input.bytes(1)?,
            op::BINBYTES => self.input.bytes(4)?,
            op::BINBYTES8 | op::BYTEARRAY8 => self.input.bytes(8)?,

            op::EMPTY_TUPLE | op::EMPTY_LIST => self.sequence(Vec::new()),
            op::EMPTY_DICT => self.dict(Vec::new()),
            op::TUPLE1 => self.tuple_of(1)?,
            op::TUPLE2 => self.tuple_of(2)?,
            op::TUPLE3 => self.tuple_of(3)?,
            op::TUPLE | op::LIST => {
                let items = self.pop_mark()?;
                self.sequence(items)
            }
            op::DICT => {
                let items = pairs(self.pop_mark()?)?;
                self.dict(items)
            }
            op::FROZENSET => {
                self.pop_mark()?;
                Value::Opaque
            }

            op::GLOBAL => self.global()?,
            op::STACK_GLOBAL => match (self.pop()?, self.pop()?) {
                (Value::Str(name), Value::Str(module)) => known_global(module, name),
                _ => Value::Opaque,
            },
            op::REDUCE | op::NEWOBJ => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.reduce(callable, arguments)?
            }
            op::NEWOBJ_EX => {
                self.tuple_of(3)?;
                Value::Opaque
            }
            op::BINPERSID => {
                let id = self.pop()?;
                self.persistent(id)?
            }
            op::BINGET => {
                let key = self.input.byte()?.into();
                self.recall(key)?
            }
            op::LONG_BINGET => {
                let key = u32::from_le_bytes(self.input.array()?);
                self.recall(key)?
            }
            op::DUP => self.top()?,

            _ => return self.step_in_place(opcode),
        };
        self.stack.push(value);
        Ok(())
    }

    /// The opcodes that push nothing.
    fn step_in_place(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            op::PROTO => _ = self.input.take(1)?,
            op::FRAME => _ = self.input.take(8)?,
            op::MARK => self.marks.push(self.stack.len()),
            op::POP if self.marks.last() == Some(&self.stack.len()) => _ = self.marks.pop(),
            op::POP => _ = self.pop()?,
            op::POP_MARK => _ = self.pop_mark()?,
            op::BINPUT => {
                let key = self.input.byte()?.into();
                self.memoize(key)?;
            }
            op::LONG_BINPUT => {
                let key = u32::from_le_bytes(self.input.array()?);
                self.memoize(key)?;
            }
            op::MEMOIZE => self.memoize(self.memo.len() as u32)?,
            op::APPEND => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            op::APPENDS => {
                let items = self.pop_mark()?;
                self.extend(items)?;
            }
            op::SETITEM => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.update(vec![(key, value)])?;
            }
            op::SETITEMS => {
                let items = pairs(self.pop_mark()?)?;
                self.update(items)?;
            }
            op::ADDITEMS => {
                self.pop_mark()?;
                self.top()?;
            }
            // The state of an object: attributes of a dictionary (torch's `_metadata`), or of
            // something opaque.
            op::BUILD => {
                self.pop()?;
                self.top()?;
            }
            other => return Err(format!("opcode {other:#04x}, which torch does not write")),
        }
        Ok(())
    }

    fn reduce(&mut self, callable: Value<'a>, arguments: Value<'a>) -> Result<Value<'a>, String> {
        let global = match callable {
            Value::Global(Global::Torch(_)) => return Ok(Value::Opaque),
            Value::Global(Global::RebuildForeign(why)) => return Ok(Value::Foreign(why)),
            Value::Global(global) => global,
            _ => return Ok(Value::Opaque),
        };
        let Value::Sequence(arguments) = arguments else {
            return Err("a call without a tuple of arguments".into());
        };
        match (global, self.heap.sequences[arguments].as_slice()) {
            (Global::OrderedDict, []) => Ok(self.dict(Vec::new())),
            (Global::OrderedDict, &[Value::Sequence(items)]) => self.dict_of_pairs(items),
            (Global::OrderedDict, _) => Err("an OrderedDict that is not made of pairs".into()),
            (
                Global::RebuildTensor,
                &[
                    Value::Storage(storage),
                    Value::Int(offset),
                    Value::Sequence(sizes),
                    Value::Sequence(strides),
                    ..,
                ],
            ) => match self.heap.storages[storage].element {
                Element::Readable(dtype) => {
                    self.heap.tensors.push(Rebuilt { storage, dtype, offset, sizes, strides });
                    Ok(Value::Tensor(self.heap.tensors.len() - 1))
                }
                Element::Other(name) => Ok(Value::Foreign(Foreign::Element(name))),
            },
            (Global::RebuildTensor, [Value::Opaque, ..]) => Ok(Value::Foreign(Foreign::NoStorage)),
            (Global::RebuildTensor, _) => {
                Err("a tensor without storage, offset, sizes and strides".into())
            }
            (Global::RebuildTyped, arguments) => Ok(Value::Foreign(match arguments.get(6) {
                Some(Value::Global(Global::Torch(dtype))) => Foreign::Element(dtype),
                _ => Foreign::Rebuilt("_rebuild_tensor_v3"),
            })),
            (Global::RebuildQuantized, &[Value::Storage(storage), ..]) => {
                Ok(Value::Foreign(match self.heap.storages[storage].element {
                    Element::Other(name) => Foreign::Quantized(name),
                    Element::Readable(dtype) => Foreign::Quantized(dtype.name()),
                }))
            }
            (Global::RebuildQuantized, _) => Ok(Value::Foreign(Foreign::NoStorage)),
            (Global::RebuildParameter, [value @ (Value::Tensor(_) | Value::Foreign(_)), ..]) => {
                Ok(*value)
            }
            _ => Ok(Value::Opaque),
        }
    }

    /// An `OrderedDict` as Python 2 pickles it: made from a list of its keys and values.
    fn dict_of_pairs(&mut self, items: usize) -> Result<Value<'a>, String> {
        let items = &self.heap.sequences[items];
        self.n_copied += items.len();
        if self.n_copied > MAX_COPIED {
            return Err(format!("over {MAX_COPIED} pairs in dictionaries made of pairs"));
        }
        let pair = |item: &Value| match *item {
            Value::Sequence(pair) => match self.heap.sequences[pair][..] {
                [key, value] => Some((key, value)),
                _ => None,
            },
            _ => None,
        };
        let pairs: Option<Vec<_>> = items.iter().map(pair).collect();
        let pairs = pairs.ok_or("an OrderedDict that is not made of pairs")?;
        Ok(self.dict(pairs))
    }

    /// A reference to something outside of the pickle; torch refers to storages.
    fn persistent(&mut self, id: Value<'a>) -> Result<Value<'a>, String> {
        let Value::Sequence(id) = id else { return Ok(Value::Opaque) };
        match self.heap.sequences[id].as_slice() {
            // (kind, type, key, device, number of elements), in the legacy format also which part
            &[
                Value::Str("storage"),
                Value::Global(Global::Storage(element)),
                Value::Str(key),
                _,
                Value::Int(len),
                ref rest @ ..,
            ] => {
                let part = self.part(rest).ok_or("a storage that is an unclear part of another")?;
                self.heap.storages.push(Storage { key, element, len, part });
                Ok(Value::Storage(self.heap.storages.len() - 1))
            }
            [Value::Str("storage"), Value::Global(Global::Storage(_)), ..] => {
                Err("a storage without type, key and length".into())
            }
            _ => Ok(Value::Opaque),
        }
    }

    /// Which part of a storage is meant: nothing or `None` for all of it, else (key of the part,
    /// first element, number of elements).
    fn part(&self, rest: &[Value]) -> Option<Option<(i64, i64)>> {
        match *rest {
            [] | [Value::Opaque] => Some(None),
            [Value::Sequence(part)] => match self.heap.sequences[part][..] {
                [_, Value::Int(start), Value::Int(len)] => Some(Some((start, len))),
                _ => None,
            },
            _ => None,
        }
    }

    fn global(&mut self) -> Result<Value<'a>, String> {
        let (module, name) = (self.input.line()?, self.input.line()?);
        Ok(known_global(module, name))
    }

    fn extend(&mut self, items: Vec<Value<'a>>) -> Result<(), String> {
        match self.top()? {
            Value::Sequence(list) => self.heap.sequences[list].extend(items),
            Value::Opaque | Value::Foreign(_) => {}
            _ => return Err("items for what is not a list".into()),
        }
        Ok(())
    }

    fn update(&mut self, items: Vec<(Value<'a>, Value<'a>)>) -> Result<(), String> {
        match self.top()? {
            Value::Dict(dict) => self.heap.dicts[dict].extend(items),
            Value::Opaque | Value::Foreign(_) => {}
            _ => return Err("items for what is not a dictionary".into()),
        }
        Ok(())
    }

    fn sequence(&mut self, items: Vec<Value<'a>>) -> Value<'a> {
        self.heap.sequences.push(items);
        Value::Sequence(self.heap.sequences.len() - 1)
    }

    fn dict(&mut self, items: Vec<(Value<'a>, Value<'a>)>) -> Value<'a> {
        self.heap.dicts.push(items);
        Value::Dict(self.heap.dicts.len() - 1)
    }

    fn tuple_of(&mut self, n: usize) -> Result<Value<'a>, String> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        Ok(self.sequence(items))
    }

    fn memoize(&mut self, key: u32) -> Result<(), String> {
        let value = self.top()?;
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&self, key: u32) -> Result<Value<'a>, String> {
        self.memo.get(&key).copied().ok_or_else(|| format!("nothing is memoized as {key}"))
    }

    /// How many values lie below the innermost open mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Value<'a>, String> {
        let above_mark = self.stack.get(self.floor()..).and_then(<[_]>::last);
        above_mark.copied().ok_or_else(|| "the stack is empty".into())
    }

    fn pop(&mut self) -> Result<Value<'a>, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Value<'a>>, String> {
        let mark = self.marks.pop().ok_or("there is no mark")?;
        Ok(self.stack.split_off(mark))
    }
}

fn pairs<'a>(items: Vec<Value<'a>>) -> Result<Vec<(Value<'a>, Value<'a>)>, String> {
    match items.as_chunks() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err("a key without a value".into()),
    }
}

#[cfg(test)]
mod tests;
