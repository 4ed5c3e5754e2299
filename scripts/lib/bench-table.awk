# Makes scripts/bench's table, in markdown. Input: first the variants, one "NAME BASE ..." a line, then the values, one
# "VARIANT BOOT NAME VALUE" a line.

FNR == NR {
    variants[++nvariants] = $1
    base[$1] = $2
    next
}

{
    if (!($3 in seen)) {
        seen[$3] = 1
        if ($3 !~ /\./) loads[++nloads] = $3
    }
    sample[$1, $3, ++count[$1, $3]] = $4 + 0
}

# Sorts the samples of a variant and a name into sorted[1..n], and returns n.
function sort_samples(variant, name,    n, i, j, x) {
    n = count[variant, name]
    for (i = 1; i <= n; i++) {
        x = sample[variant, name, i]
        for (j = i - 1; j >= 1 && sorted[j] > x; j--) sorted[j + 1] = sorted[j]
        sorted[j + 1] = x
    }
    return n
}

function median(variant, name,    n, half) {
    n = sort_samples(variant, name)
    if (!n) return 0
    half = int((n + 1) / 2)
    return n % 2 ? sorted[half] : (sorted[half] + sorted[half + 1]) / 2
}

# "median (least to most)", in units of `unit`.
function spread(variant, name, unit, format,    m, n) {
    if (!((variant, name) in count)) return "-"
    m = median(variant, name)
    n = sort_samples(variant, name)
    return sprintf(format " (" format " to " format ")", m / unit, sorted[1] / unit, sorted[n] / unit)
}

# A ratio of medians.
function ratio(variant, name,    m, b) {
    m = median(variant, name)
    b = median(base[variant], name)
    return m && b ? sprintf("%.2f", m / b) : "-"
}

function heading(first, skip_bases,    i, line, rule) {
    line = "| " first " |"
    rule = "|---|"
    for (i = 1; i <= nvariants; i++) {
        if (skip_bases && base[variants[i]] == variants[i]) continue
        line = line " " variants[i] " |"
        rule = rule "---|"
    }
    print line
    print rule
}

function ratio_row(title, name,    i, line) {
    line = "| " title " |"
    for (i = 1; i <= nvariants; i++)
        if (base[variants[i]] != variants[i]) line = line " " ratio(variants[i], name) " |"
    print line
}

function spread_row(title, name, unit, format,    i, line, any) {
    line = "| " title " |"
    for (i = 1; i <= nvariants; i++) {
        any = any || ((variants[i], name) in count)
        line = line " " spread(variants[i], name, unit, format) " |"
    }
    if (any) print line
}

END {
    print "Times by the guest's clock, as multiples of those without a plugin (ratios of medians):\n"
    heading("load", 1)
    for (l = 1; l <= nloads; l++) ratio_row(loads[l], loads[l])

    print "\nThe same by the processor time that QEMU had of the host, on which a busy machine has less influence:\n"
    heading("load", 1)
    for (l = 1; l <= nloads; l++) ratio_row(loads[l], "cpu." loads[l])
    ratio_row("all of it, with the check at exit", ".cpu")

    print "\nMedians (least to most), ms by the guest's clock:\n"
    heading("load", 0)
    for (l = 1; l <= nloads; l++) spread_row(loads[l], loads[l], 1, "%.0f")

    print "\nMedians (least to most), ms of QEMU's processor time, and other figures:\n"
    heading("load", 0)
    for (l = 1; l <= nloads; l++) spread_row(loads[l], "cpu." loads[l], 1, "%.0f")
    spread_row("all of it, with the check at exit", ".cpu", 1, "%.0f")
    spread_row("pause for the check at exit, ms", ".pause", 1, "%.0f")
    spread_row("scan, ms (kmemleak: the second that was asked for)", ".scan", 1, "%.0f")
    spread_row("live objects", ".objects", 1, "%.0f")
    spread_row("memory of QEMU at its most, MiB (ru_maxrss)", ".rss", 1024, "%.0f")
}
