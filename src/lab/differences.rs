//! How do two declarations differ? A short description for error messages.

use serde_json::Value;

/// Maximum number of differences listed.
const NAMED: usize = 6;

/// One difference: path, expected value and found value.
type Difference = (String, String, String);

/// Describes the differing fields of `expected` and `found`, each as a list of `name value`; `None` if they are equal.
pub(super) fn differences(expected: &Value, found: &Value) -> Option<(String, String)> {
    let mut all = vec![];
    collect("", Some(expected), Some(found), &mut all);
    let more = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    let list = |value: fn(&Difference) -> &str| {
        let each = all.iter().map(|difference| format!("{} {}", difference.0, value(difference)));
        let more = (more > 0).then(|| format!("and {more} more"));
        each.chain(more).collect::<Vec<_>>().join(", ")
    };
    (!all.is_empty()).then(|| (list(|difference| &difference.1), list(|difference| &difference.2)))
}

fn collect(at: &str, expected: Option<&Value>, found: Option<&Value>, all: &mut Vec<Difference>) {
    let inner = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    match (expected, found) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            names.into_iter().for_each(|name| collect(&inner(name), a.get(name), b.get(name), all));
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(n, (a, b))| collect(&inner(&n.to_string()), Some(a), Some(b), all));
        }
        (a, b) if a == b => {}
        (a, b) => all.push((at.to_owned(), shown(a), shown(b))),
    }
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "absent".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_are_named_with_both_values() {
        let (a, b) = (json!({"x": {"y": 1, "z": [1, 2]}, "only": "a"}), json!({"x": {"y": 2, "z": [1, 3]}}));
        let (expected, found) = differences(&a, &b).unwrap();
        assert_eq!(expected, "only a, x.y 1, x.z.1 2");
        assert_eq!(found, "only absent, x.y 2, x.z.1 3");
        assert!(differences(&a, &a).is_none());
        let many = |by: u64| (0..9u64).map(|n| (format!("n{n}"), json!(n + by))).collect::<serde_json::Map<_, _>>();
        assert!(differences(&many(0).into(), &many(1).into()).unwrap().0.ends_with("and 3 more"));
    }
}
