//! MQTT topic names and filters: what is one, and which filter covers which name (MQTT 5.0 and 3.1.1, section 4.7).
//!
//! Topics may hold anything that a device puts there: nothing here prints one.

/// Whether it can be published to: not empty, no wildcard, no U+0000.
pub fn is_name(topic: &str) -> bool {
    !topic.is_empty() && !topic.contains(['+', '#', '\0'])
}

/// Whether it is a filter: wildcards stand for whole levels only, and `#` is the last.
pub fn is_filter(filter: &str) -> bool {
    let mut levels = filter.split('/').rev();
    let whole = |level: &str| level == "+" || !level.contains(['+', '#']);
    let last = levels.next().is_some_and(|level| level == "#" || whole(level));
    !filter.is_empty() && !filter.contains('\0') && last && levels.all(whole)
}

/// Whether a topic filter covers a topic name.
pub fn covers(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (mut filters, mut levels) = (filter.split('/'), topic.split('/'));
    loop {
        match (filters.next(), levels.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(filter), Some(level)) if filter == level => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_cover_topics_as_the_standard_says() {
        for (filter, topic) in
            [("a/+/c", "a/b/c"), ("#", "a/b"), ("a/#", "a"), ("a/#", "a/b/c"), ("+/+", "/a"), ("a", "a")]
        {
            assert!(covers(filter, topic), "{filter} {topic}");
        }
        for (filter, topic) in
            [("a/+", "a/b/c"), ("+", "a/b"), ("a/b", "a"), ("#", "$SYS/x"), ("+/x", "$SYS/x"), ("a", "A")]
        {
            assert!(!covers(filter, topic), "{filter} {topic}");
        }
    }

    #[test]
    fn wildcards_stand_for_whole_levels_and_in_no_name() {
        for filter in ["a", "+", "#", "a/+/c", "/", "a//#", "+/+"] {
            assert!(is_filter(filter), "{filter}");
        }
        for filter in ["", "a+", "a/#/b", "#/a", "a#", "a\0"] {
            assert!(!is_filter(filter), "{filter}");
        }
        assert!(
            is_name("ward3/bed 1/SpO\u{2082}") && !is_name("a/+") && !is_name("#") && !is_name("") && !is_name("\0")
        );
    }
}
