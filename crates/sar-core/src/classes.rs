//! Finding a class by what a person writes.

use unicode_normalization::UnicodeNormalization;

/// No class is meant, or several are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClassError {
    /// No class has this name.
    #[error("no class '{query}'; nearest: {nearest}; known: 0..{last}")]
    Unknown {
        /// The name asked for.
        query: String,
        /// The nearest names, quoted, with commas.
        nearest: String,
        /// The last class index.
        last: usize,
    },
    /// No class has this index.
    #[error("no class {query}; known: 0..{last}, or a class name")]
    Index {
        /// The index asked for, as written.
        query: String,
        /// The last class index.
        last: usize,
    },
    /// Several classes match equally well.
    #[error("class '{query}' is ambiguous: {candidates}; write more of the name, or its index")]
    Ambiguous {
        /// The name asked for.
        query: String,
        /// The classes that match, quoted, with indices and commas.
        candidates: String,
    },
}

/// A name as it is compared: one of the ways in which Unicode writes the same letters (NFC), lower case.
fn folded(name: &str) -> String {
    name.nfc().collect::<String>().to_lowercase()
}

/// The class that `query` means: `#` and its index, an exact name, an index, or the only name that is it, begins with
/// it, has a word that begins with it, or contains it; upper and lower case are then the same, and so
/// are composed and decomposed letters.
///
/// The exact name comes before the index for classes that are named by numbers which are not their indices;
/// `#2` is the class with index 2 whatever the names are.
///
/// # Errors
/// If no class or more than one is meant; the error lists the nearest names.
pub fn find_class(classes: &[String], query: &str) -> Result<usize, ClassError> {
    let of_hash = query.trim().strip_prefix('#').and_then(|index| index.parse::<usize>().ok());
    if let Some(index) = of_hash.filter(|index| *index < classes.len()) {
        return Ok(index);
    }
    if let Some(index) = classes.iter().position(|name| name == query) {
        return Ok(index);
    }
    let last = classes.len().saturating_sub(1);
    let wanted = folded(query.trim());
    if let Some(index) = of_hash.or(wanted.parse::<usize>().ok()) {
        return if index < classes.len() {
            Ok(index)
        } else {
            Err(ClassError::Index { query: query.into(), last })
        };
    }
    let names: Vec<String> = classes.iter().map(|name| folded(name)).collect();
    let rules: [&dyn Fn(&String) -> bool; 4] = [
        &|name| *name == wanted,
        &|name| name.starts_with(&wanted),
        &|name| name.split_whitespace().any(|word| word.starts_with(&wanted)),
        &|name| name.contains(&wanted),
    ];
    for rule in rules.into_iter().filter(|_| !wanted.is_empty()) {
        let found: Vec<usize> = (0..names.len()).filter(|i| rule(&names[*i])).collect();
        match found[..] {
            [] => {}
            [only] => return Ok(only),
            _ => {
                let candidates = found.iter().map(|i| format!("'{}' ({i})", classes[*i]));
                return Err(ClassError::Ambiguous {
                    query: query.into(),
                    candidates: candidates.collect::<Vec<_>>().join(", "),
                });
            }
        }
    }
    Err(ClassError::Unknown { query: query.into(), nearest: nearest(classes, &wanted), last })
}

/// What means a class by its index whatever the names are: the index alone where no name is in its way, else
/// `#` and the index.
pub fn class_query(classes: &[String], label: usize) -> String {
    let index = label.to_string();
    if find_class(classes, &index) == Ok(label) { index } else { format!("#{index}") }
}

/// The three names with a word most like the query, quoted.
pub fn nearest(classes: &[String], wanted: &str) -> String {
    let likeness = |name: &str| {
        let name = folded(name);
        let words = name.split_whitespace().map(|word| strsim::jaro_winkler(word, wanted));
        words.fold(strsim::jaro_winkler(&name, wanted), f64::max)
    };
    let mut ranked: Vec<(f64, &String)> =
        classes.iter().map(|name| (likeness(name), name)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let names = ranked.iter().take(3).map(|(_, name)| format!("'{name}'"));
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        let classes: Vec<String> =
            ["Smileys & Emotion", "Food & Drink", "Flags", "Animals & Nature", "Flowers"]
                .map(String::from)
                .to_vec();
        let find = |query: &str| find_class(&classes, query).map_err(|error| error.to_string());
        assert_eq!(find("3"), Ok(3));
        assert_eq!(find("food"), Ok(1));
        assert_eq!(find("FOOD & DRINK"), Ok(1));
        assert_eq!(find("drink"), Ok(1));
        assert_eq!(find("motion"), Ok(0));
        assert_eq!(find("flags"), Ok(2));
        let error = find("fl").unwrap_err();
        assert!(error.contains("ambiguous: 'Flags' (2), 'Flowers' (4)"), "{error}");
        let error = find("fod").unwrap_err();
        assert!(error.contains("nearest: 'Food & Drink'") && error.contains("0..4"), "{error}");
        assert!(find("5").unwrap_err().contains("no class 5"));
        assert!(find("").is_err() && find("-1").is_err());
    }

    #[test]
    fn composed_and_decomposed_letters_are_the_same() {
        let classes = ["cafe\u{301} & co".to_owned(), "tea".to_owned()];
        assert_eq!(find_class(&classes, "caf\u{e9}"), Ok(0));
        assert_eq!(find_class(&["caf\u{e9}".to_owned()], "CAFE\u{301}"), Ok(0));
    }

    #[test]
    fn a_name_that_is_a_number_is_that_name() {
        let digits = ["0", "1", "10", "2", "a", "A"].map(String::from);
        assert_eq!(find_class(&digits, "10").unwrap(), 2);
        assert_eq!(find_class(&digits, "2").unwrap(), 3);
        assert_eq!(find_class(&digits, "4").unwrap(), 4, "no such name, so the index");
        assert_eq!(find_class(&digits, "A").unwrap(), 5);
    }

    #[test]
    fn a_hash_and_an_index_is_that_index() {
        let digits = ["0", "1", "10", "2", "a", "#1"].map(String::from);
        for label in 0..digits.len() {
            assert_eq!(find_class(&digits, &format!("#{label}")).unwrap(), label);
            assert_eq!(find_class(&digits, &class_query(&digits, label)).unwrap(), label);
        }
        let queries = (0..digits.len()).map(|label| class_query(&digits, label));
        assert_eq!(queries.collect::<Vec<_>>(), ["0", "1", "#2", "3", "4", "5"]);
        assert!(find_class(&digits, "#6").unwrap_err().to_string().contains("no class #6"));
        assert!(find_class(&digits, "#").is_ok(), "a part of the only such name");
    }
}
