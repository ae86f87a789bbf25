noinst_HEADERS += %D%/varve.h
