#![no_main]

use skep_object_fuzz::{expect_panics_of_the_relocation_library, parse};

libfuzzer_sys::fuzz_target!(init: expect_panics_of_the_relocation_library(), |data: &[u8]| parse::run(data));
