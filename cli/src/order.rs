//! An order of JSON values, so that a dump of a hash looks the same twice.

use std::cmp::Ordering;

use serde_json::Value;

/// Numbers by size, texts by bytes, lists and objects member by member; different kinds by kind.
pub fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => match (x.as_i128(), y.as_i128()) {
            (Some(x), Some(y)) => x.cmp(&y),
            _ => x.as_f64().partial_cmp(&y.as_f64()).unwrap_or(Ordering::Equal),
        },
        (Value::String(x), Value::String(y)) => x.cmp(y),
        (Value::Bool(x), Value::Bool(y)) => x.cmp(y),
        (Value::Array(x), Value::Array(y)) => each(x.iter(), y.iter()),
        (Value::Object(x), Value::Object(y)) => each(x.values(), y.values()),
        _ => rank(a).cmp(&rank(b)),
    }
}

fn each<'a>(mut a: impl Iterator<Item = &'a Value>, mut b: impl Iterator<Item = &'a Value>) -> Ordering {
    loop {
        match (a.next(), b.next()) {
            (Some(x), Some(y)) => match compare(x, y) {
                Ordering::Equal => {}
                other => return other,
            },
            (x, y) => return x.is_some().cmp(&y.is_some()),
        }
    }
}

fn rank(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_order_is_that_of_numbers_and_of_members() {
        let mut values =
            vec![json!([2, 1]), json!(10), json!(9), json!(u64::MAX), json!("b"), json!([1, 9]), json!(-1)];
        values.sort_by(compare);
        let sorted = json!([-1, 9, 10, u64::MAX, "b", [1, 9], [2, 1]]);
        assert_eq!(Value::Array(values), sorted);
        assert_eq!(compare(&json!({"a": 1, "b": 2}), &json!({"a": 1, "b": 3})), Ordering::Less);
    }
}
