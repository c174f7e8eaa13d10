//! Figures as a reader likes them.

/// With a comma after each three digits of the whole part: `-12345.6` becomes `-12,345.6`. What is no number stays as it
/// is, but for a lone or missing dash: nothing was measured.
pub(crate) fn grouped(number: &str) -> String {
    if matches!(number, "" | "-") {
        return "–".to_owned();
    }
    let (sign, digits) = number.split_at(usize::from(number.starts_with('-')));
    let (whole, fraction) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    if !whole.bytes().all(|byte| byte.is_ascii_digit()) {
        return number.to_owned();
    }
    let mut text = sign.to_owned();
    for (index, digit) in whole.char_indices() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text + fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_make_a_group() {
        for (number, text) in [
            ("0", "0"),
            ("123", "123"),
            ("1234", "1,234"),
            ("123456", "123,456"),
            ("1234567.125", "1,234,567.125"),
            ("-123.5", "-123.5"),
            ("-1234", "-1,234"),
            ("-", "–"),
            ("", "–"),
            ("p50", "p50"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
