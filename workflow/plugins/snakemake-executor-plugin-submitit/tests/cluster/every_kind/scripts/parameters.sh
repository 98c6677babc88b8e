set -eu
printf '%s\n' "${snakemake_params[text]}" "${snakemake_params[number]}" "${snakemake_input[first]}" \
    > "${snakemake_output[0]}"
