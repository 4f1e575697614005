#![no_main]

use skep_object_fuzz::{btf, expect_panics_of_the_relocation_library};

libfuzzer_sys::fuzz_target!(init: expect_panics_of_the_relocation_library(), |data: &[u8]| btf::run(data));
