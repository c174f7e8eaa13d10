#![no_main]

#[path = "../../tests/properties/stored.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|input: property::Input<'_>| {
    property::check(&input);
});
