#!/bin/sh
# Reads what ptxas -v says (standard input) and prints a line per kernel and GPU: registers, bytes of spills,
# bytes of shared memory that the kernel has by itself, and its name.
awk '
  /Compiling entry function/ {
    kernel = $0; sub(/^[^\047]*\047/, "", kernel); sub(/\047.*/, "", kernel)
    gpu = $0; sub(/.* for \047/, "", gpu); sub(/\047.*/, "", gpu)
  }
  /bytes stack frame/ {
    spills = $0; sub(/.*bytes stack frame, /, "", spills); sub(/ bytes spill stores.*/, "", spills)
  }
  /Used [0-9]+ registers/ {
    registers = $0; sub(/.*Used /, "", registers); sub(/ registers.*/, "", registers)
    shared = 0
    if ($0 ~ /bytes smem/) { shared = $0; sub(/ bytes smem.*/, "", shared); sub(/.*[ ,]/, "", shared) }
    if (gpu ~ /^sm_/) printf "%s %3d registers, %d bytes spilled, %d bytes shared  %s\n", gpu, registers, spills, shared, kernel
  }
' | c++filt | sort -u
