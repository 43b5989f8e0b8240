//! Any text as a recipe: an error of one line, or a recipe that survives being written.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sar_fuzz::file_of;
use sar_train::Recipe;

fuzz_target!(|text: &str| {
    let path = file_of(text.as_bytes(), "toml");
    let load = |settings: &[String]| Recipe::load(path.to_str().expect("a plain path"), settings);
    // The first line may also be a setting of a sound recipe.
    if let Some(setting) = text.lines().next() {
        if let Err(error) = Recipe::load("emoji-quick", &[setting.to_owned()]) {
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
    match load(&[]) {
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        Ok(recipe) => {
            let again = file_of(recipe.to_toml().as_bytes(), "toml");
            let again = Recipe::load(again.to_str().expect("a plain path"), &[]);
            assert_eq!(again.expect("just written"), recipe);
        }
    }
});
