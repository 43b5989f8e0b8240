//! A recipe as a table of dotted paths: what the command line sets in it, what it must not hold, and in
//! which field two of them differ.

use std::collections::BTreeSet;

/// Takes the value of a dotted path out, if it is there.
pub(super) fn forget(value: &mut toml::Value, path: &str) {
    let Some(table) = value.as_table_mut() else { return };
    match path.split_once('.') {
        None => _ = table.remove(path),
        Some((first, rest)) => {
            if let Some(value) = table.get_mut(first) {
                forget(value, rest);
            }
        }
    }
}

/// The first float that is none, and its path.
pub(super) fn not_finite(path: &str, value: &toml::Value) -> Option<(String, f64)> {
    match value {
        toml::Value::Float(x) if !x.is_finite() => Some((path.to_owned(), *x)),
        toml::Value::Table(table) => {
            table.iter().find_map(|(key, value)| not_finite(&below(path, key), value))
        }
        toml::Value::Array(values) => values.iter().find_map(|value| not_finite(path, value)),
        _ => None,
    }
}

/// The first key of `theirs` that `ours` has not, and its path.
pub(super) fn unknown_key(path: &str, theirs: &toml::Value, ours: &toml::Value) -> Option<String> {
    match (theirs, ours) {
        (toml::Value::Table(theirs), toml::Value::Table(ours)) => {
            theirs.iter().find_map(|(key, value)| {
                let path = below(path, key);
                match ours.get(key) {
                    Some(ours) => unknown_key(&path, value, ours),
                    None => Some(path),
                }
            })
        }
        (toml::Value::Array(theirs), toml::Value::Array(ours)) => {
            theirs.iter().zip(ours).enumerate().find_map(|(i, (theirs, ours))| {
                unknown_key(&below(path, &i.to_string()), theirs, ours)
            })
        }
        _ => None,
    }
}

/// The path of a key below another.
fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The first field, in the order of names, whose values differ: its path and both values.
pub(super) fn first_difference(
    path: &str,
    theirs: &toml::Value,
    ours: &toml::Value,
) -> Option<(String, String, String)> {
    let (toml::Value::Table(a), toml::Value::Table(b)) = (theirs, ours) else {
        return (theirs != ours).then(|| (path.to_owned(), theirs.to_string(), ours.to_string()));
    };
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    keys.into_iter().find_map(|key| {
        let at = below(path, key);
        match (a.get(key), b.get(key)) {
            (Some(theirs), Some(ours)) => first_difference(&at, theirs, ours),
            (theirs, ours) => {
                let text =
                    |v: Option<&toml::Value>| v.map_or("nothing".into(), ToString::to_string);
                Some((at, text(theirs), text(ours)))
            }
        }
    })
}

/// Applies one `key.path=value`; the value is TOML, or else a string.
pub(super) fn set(table: &mut toml::Table, setting: &str) -> Result<(), (String, String)> {
    let Some((path, text)) = setting.split_once('=') else {
        return Err((String::new(), "write it as key.path=value".into()));
    };
    let (path, text) = (path.trim(), text.trim());
    let value = format!("value = {text}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(text.into()));
    let unknown = |at: &str, known: &toml::Table| {
        let nearest = known
            .keys()
            .map(|key| (strsim::jaro_winkler(key, at), key))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map_or(String::new(), |(_, key)| format!("; nearest: {key}"));
        (path.to_owned(), format!("no such key '{at}'{nearest}"))
    };
    let mut keys = path.split('.').peekable();
    let mut here = table;
    while let Some(key) = keys.next() {
        if keys.peek().is_none() {
            // A tagged table (`kind = ...`) may gain keys when its kind changes.
            if !here.contains_key(key) && !here.contains_key("kind") && !here.contains_key("rule") {
                return Err(unknown(key, here));
            }
            let value = match (here.get(key), value) {
                // `1_2_3` is text where text stands, though TOML reads an integer.
                (Some(toml::Value::String(_)), value)
                    if !value.is_str() && !value.is_table() && !value.is_array() =>
                {
                    toml::Value::String(text.into())
                }
                // An integer where a decimal stands is meant as one.
                (Some(toml::Value::Float(_)), toml::Value::Integer(i)) => {
                    toml::Value::Float(i as f64)
                }
                (_, value) => value,
            };
            here.insert(key.to_owned(), value);
            return Ok(());
        }
        if !here.contains_key(key) {
            return Err(unknown(key, here));
        }
        here = match here.get_mut(key) {
            Some(toml::Value::Table(inner)) => inner,
            _ => return Err((path.to_owned(), format!("'{key}' is a value, not a table"))),
        };
    }
    Err((path.to_owned(), "empty key".into()))
}
