#!/bin/sh
# Compiles kernels for the host into a shared object for SIDEREAL_HOST_KERNELS. Run from the repository's root:
#   kernels/host/build_object.sh OUT.so [address|thread|none] [FILE.cu ...]       default: all kernels, no sanitizer
# A sanitizer's runtime has to be loaded first: LD_PRELOAD=$(g++ -print-file-name=libasan.so) (or libtsan.so) before the program.
# With the thread sanitizer also TSAN_OPTIONS=ignore_noninstrumented_modules=1, since the Rust code around it is not compiled for it.
# Objects are kept next to OUT.so and made again when something that they were made from is newer. Files are replaced, never written
# into, so that a copy of the folder may share them by hard links.
set -e
out=$1; shift
sanitizer=none
case "${1:-}" in address|thread|none) sanitizer=$1; shift ;; esac
[ $# -gt 0 ] || set -- kernels/*.cu kernels/host/tests/*.cu
cxx=${CXX:-c++}
flags="-std=c++20 -fPIC -fvisibility=hidden -Ikernels -ffp-contract=off -fno-strict-aliasing -fno-exceptions -Wno-unknown-pragmas"
case $sanitizer in
  address) kernel_flags="-O1 -g -fsanitize=address,undefined -fno-sanitize=vptr,alignment"; runtime_flags="-O2 -DSIDEREAL_HOST_ASAN"; link="-fsanitize=address,undefined" ;;
  thread) kernel_flags="-O1 -g -fsanitize=thread"; runtime_flags="-O2 -DSIDEREAL_HOST_TSAN"; link="-fsanitize=thread" ;;
  none) kernel_flags="-O2 -Wall"; runtime_flags="-O2"; link="" ;;
esac
objects=$out.$sanitizer.objects
mkdir -p "$objects"
# Compiles $1 to $2 with the flags that follow, unless $2 is newer than everything that $1 includes.
compile() {
  source=$1 object=$2
  shift 2
  if [ -e "$object" ] && [ -e "$object.d" ]; then
    stale=
    for file in $(sed 's/^[^:]*://; s/\\$//' "$object.d"); do
      [ -e "$file" ] && [ ! "$file" -nt "$object" ] || stale=1
    done
    [ -n "$stale" ] || return 0
  fi
  rm -f "$object" "$object.d"
  $cxx $flags "$@" -MMD -MF "$object.d" -xc++ -c "$source" -o "$object"
}
for source in kernels/host/*.cpp; do
  compile "$source" "$objects/$(basename "$source" .cpp).o" $runtime_flags
done
rm -f "$objects/registry.cpp"
{
  echo '#include "host/runtime.h"'
  sed -n 's/^KERNEL(\([a-z0-9_]*\),.*/extern const host::Kernel host_\1;/p' "$@"
  echo 'namespace host { extern const Kernel* const kernel_table[]; extern const uint32_t kernel_count;'
  echo 'const Kernel* const kernel_table[] = {'
  sed -n 's/^KERNEL(\([a-z0-9_]*\),.*/\&host_\1,/p' "$@"
  echo '}; const uint32_t kernel_count = sizeof kernel_table / sizeof *kernel_table; }'
} > "$objects/registry.cpp"
linked=
for source in "$@"; do
  object=$objects/kernel_$(basename "$source" .cu).o
  linked="$linked $object"
  compile "$source" "$object" $kernel_flags
done
compile "$objects/registry.cpp" "$objects/registry_table.o" $runtime_flags
rm -f "$out"
runtime=
for source in kernels/host/*.cpp; do runtime="$runtime $objects/$(basename "$source" .cpp).o"; done
$cxx -shared -Wl,-Bsymbolic $link $linked $runtime "$objects/registry_table.o" -o "$out" -lpthread
