//! What two loaders made of an object, compared; and the differences that are known.

use std::collections::BTreeMap;
use std::fmt;

/// Tag or reason by program; or why the object as a whole is refused.
pub type Outcome = Result<BTreeMap<String, Result<String, String>>, String>;

/// Of one object, or summed over several.
#[derive(Debug, Default)]
pub struct Verdict {
    programs: usize,
    skep: usize,
    libbpf: usize,
    same: usize,
    /// Of programs that libbpf does not load: who refuses which of them, by who and why.
    refused: BTreeMap<(&'static str, String), Vec<String>>,
    excepted: Vec<String>,
    pub failures: Vec<String>,
}

impl Verdict {
    pub fn of(object: &str, skep: &Outcome, libbpf: &Outcome, exceptions: &mut Exceptions) -> Self {
        let none = BTreeMap::new();
        let (ours, theirs) = (skep.as_ref().unwrap_or(&none), libbpf.as_ref().unwrap_or(&none));
        let mut verdict = Verdict {
            programs: ours.len().max(theirs.len()),
            skep: ours.values().filter(|program| program.is_ok()).count(),
            libbpf: theirs.values().filter(|program| program.is_ok()).count(),
            ..Verdict::default()
        };
        for (program, tag) in theirs.iter().filter_map(|(program, tag)| Some((program, tag.as_ref().ok()?))) {
            let difference = match (skep, ours.get(program)) {
                (_, Some(Ok(ours))) if ours == tag => {
                    verdict.same += 1;
                    continue;
                }
                (_, Some(Ok(ours))) => format!("its tag is {ours}, with libbpf {tag}"),
                (_, Some(Err(reason))) | (Err(reason), None) => format!("libbpf loads it, Skep refuses: {reason}"),
                (Ok(_), None) => "libbpf loads it, Skep finds no such program".into(),
            };
            match exceptions.cause(object, program) {
                Some(cause) => verdict.excepted.push(format!("{program}: {difference} (exception: {cause})")),
                None => verdict.failures.push(format!("{object}: {program}: {difference}")),
            }
        }
        let unloaded = |program: &String| !theirs.get(program).is_some_and(Result::is_ok);
        for (who, all) in [("libbpf", theirs), ("Skep", ours)] {
            for (program, result) in all.iter().filter(|(program, _)| unloaded(program)) {
                let Err(reason) = result else { continue };
                let reason = reason.replace(&format!("prog '{program}': "), "").replace(&format!("{program}: "), "");
                verdict.refused.entry((who, reason)).or_default().push(program.clone());
            }
        }
        for (who, outcome) in [("libbpf", libbpf), ("Skep", skep)] {
            let whole = outcome.as_ref().err().filter(|_| verdict.libbpf == 0);
            verdict.refused.extend(whole.map(|reason| ((who, reason.clone()), vec!["all".to_owned()])));
        }
        exceptions.seen(object);
        verdict
    }

    pub fn add(&mut self, other: &Self) {
        self.programs += other.programs;
        self.skep += other.skep;
        self.libbpf += other.libbpf;
        self.same += other.same;
        self.excepted.extend(other.excepted.iter().cloned());
        self.failures.extend(other.failures.iter().cloned());
    }

    pub fn figures(&self) -> String {
        let Verdict { programs, skep, libbpf, same, .. } = self;
        let mut text = format!("{programs} programs, Skep loads {skep}, libbpf {libbpf}, same tag {same}");
        for (count, what) in [(self.excepted.len(), "excepted"), (self.failures.len(), "NOT AS LIBBPF")] {
            if count > 0 {
                text.push_str(&format!(", {what} {count}"));
            }
        }
        text
    }
}

/// The object's line, and one below it for each that is refused or differs.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.figures())?;
        for ((who, reason), programs) in &self.refused {
            writeln!(f, "    {who} refuses {}: {reason}", programs.join(", "))?;
        }
        for text in &self.excepted {
            writeln!(f, "    excepted: {text}")?;
        }
        for text in &self.failures {
            writeln!(f, "    NOT AS LIBBPF: {text}")?;
        }
        Ok(())
    }
}

/// The checked-in list.
#[derive(Debug)]
pub struct Exceptions {
    /// (object, program) to cause.
    causes: BTreeMap<(String, String), String>,
    /// Of objects that were looked at, those that nothing asked for.
    idle: Vec<(String, String)>,
    used: Vec<(String, String)>,
}

impl Exceptions {
    /// Lines of object, program and cause; `#` begins a comment.
    pub fn read(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let entry = |line: &str| {
            let fields =
                line.split_once(' ').and_then(|(object, rest)| Some((object, rest.trim_start().split_once(' ')?)));
            let (object, (program, cause)) =
                fields.unwrap_or_else(|| panic!("an exception needs object, program and cause: {line:?}"));
            ((object.to_owned(), program.to_owned()), cause.trim().to_owned())
        };
        Exceptions { causes: lines.map(entry).collect(), idle: Vec::new(), used: Vec::new() }
    }

    fn cause(&mut self, object: &str, program: &str) -> Option<&str> {
        let key = (object.to_owned(), program.to_owned());
        let cause = self.causes.get(&key)?;
        self.used.push(key);
        Some(cause)
    }

    fn seen(&mut self, object: &str) {
        let its = self.causes.keys().filter(|key| key.0 == object && !self.used.contains(key));
        self.idle.extend(its.cloned());
    }

    /// Those of objects that were there and did not need them.
    pub fn unused(&self) -> Vec<String> {
        self.idle.iter().map(|(object, program)| format!("{object} {program}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(programs: &[(&str, Result<&str, &str>)]) -> Outcome {
        let own = |result: &Result<&str, &str>| result.map(str::to_owned).map_err(str::to_owned);
        Ok(programs.iter().map(|(name, result)| ((*name).to_owned(), own(result))).collect())
    }

    fn judged(skep: &Outcome, libbpf: &Outcome, exceptions: &str) -> (Verdict, Vec<String>) {
        let mut exceptions = Exceptions::read(exceptions);
        let verdict = Verdict::of("a.o", skep, libbpf, &mut exceptions);
        (verdict, exceptions.unused())
    }

    #[test]
    fn what_libbpf_loads_must_load_with_the_same_tag() {
        let libbpf = outcome(&[("f", Ok("1")), ("g", Ok("2")), ("h", Ok("3"))]);
        let skep = outcome(&[("f", Ok("1")), ("g", Ok("7")), ("h", Err("h: no"))]);
        let (verdict, _) = judged(&skep, &libbpf, "");
        let expected = ["a.o: g: its tag is 7, with libbpf 2", "a.o: h: libbpf loads it, Skep refuses: h: no"];
        assert_eq!(verdict.failures, expected);
        assert_eq!(verdict.figures(), "3 programs, Skep loads 2, libbpf 3, same tag 1, NOT AS LIBBPF 2");
        let (verdict, _) = judged(&Err("it is malformed".into()), &libbpf, "");
        assert_eq!(verdict.failures.len(), 3);
    }

    #[test]
    fn what_libbpf_refuses_is_told_and_no_failure() {
        let skep = outcome(&[("f", Ok("1")), ("g", Err("g: no")), ("h", Err("h: no"))]);
        let (verdict, _) = judged(&skep, &Err("failed".into()), "");
        assert!(verdict.failures.is_empty());
        let expected = "3 programs, Skep loads 1, libbpf 0, same tag 0\n    Skep refuses g, h: no\n    libbpf refuses all: failed\n";
        assert_eq!(verdict.to_string(), expected);
    }

    #[test]
    fn exceptions_have_a_cause_and_end_with_it() {
        let libbpf = outcome(&[("f", Ok("1"))]);
        let list = "# comment\n\na.o  f   a good cause\nb.o f of an object that is not here\n";
        let (verdict, unused) = judged(&outcome(&[("f", Ok("2"))]), &libbpf, list);
        assert!(verdict.failures.is_empty() && unused.is_empty());
        assert_eq!(verdict.excepted, ["f: its tag is 2, with libbpf 1 (exception: a good cause)"]);
        let (_, unused) = judged(&libbpf, &libbpf, list);
        assert_eq!(unused, ["a.o f"]);
    }
}
