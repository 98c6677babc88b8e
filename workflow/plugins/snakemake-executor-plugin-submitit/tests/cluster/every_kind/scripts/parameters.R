lines <- c(snakemake@params[["text"]], snakemake@params[["number"]],
           sum(unlist(snakemake@params[["several"]])), snakemake@input[["first"]])
writeLines(enc2utf8(lines), snakemake@output[[1]], useBytes = TRUE)
