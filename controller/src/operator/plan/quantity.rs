//! When two of Kubernetes' quantities are the same amount: the API server writes `1024Ki` back as `1Mi`.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Whether both are the same amount; what is no quantity equals only itself.
pub fn equal(a: &Quantity, b: &Quantity) -> bool {
    match (amount(&a.0), amount(&b.0)) {
        // Both came from decimal text of a few digits: a part in 2^40 tells equal from different.
        (Some(a), Some(b)) => (a - b).abs() <= a.abs().max(b.abs()) * (0.5_f64).powi(40),
        _ => a == b,
    }
}

fn amount(text: &str) -> Option<f64> {
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    for (power, suffix) in (1..).zip(binary) {
        if let Some(number) = text.strip_suffix(suffix) {
            return Some(number.parse::<f64>().ok()? * 1024_f64.powi(power));
        }
    }
    let decimal = [
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    for (suffix, power) in decimal {
        if let Some(number) = text.strip_suffix(suffix) {
            return Some(number.parse::<f64>().ok()? * 10_f64.powi(power));
        }
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: &str, b: &str) -> bool {
        equal(&Quantity(a.to_owned()), &Quantity(b.to_owned()))
    }

    #[test]
    fn an_amount_is_the_same_however_it_is_written() {
        assert!(same("1024Ki", "1Mi"));
        assert!(same("0.005", "5m"));
        assert!(same("1e3", "1k"));
        assert!(same("2Mi", "2Mi"));
    }

    #[test]
    fn different_amounts_are_different_however_close() {
        assert!(!same("1M", "1Mi"));
        assert!(!same("1000000000", "1000000001"));
        assert!(!same("5m", "5"));
    }

    #[test]
    fn what_is_no_quantity_equals_only_itself() {
        assert!(same("much", "much"));
        assert!(!same("much", "1Mi"));
    }
}
