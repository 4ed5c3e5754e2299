// The example that users find beside the header.
#include "../../scripts/fuzz/marker.c"
